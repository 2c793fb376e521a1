/*
 * _lowlevel: the companion of pyfuse3.  It reaches what pyfuse3 3.5 does not pass on.
 *
 * The module is loaded with RTLD_GLOBAL before pyfuse3 is imported.  Three functions of libfuse that
 * pyfuse3 calls are therefore found here first; each does its small work and calls the real one:
 *
 *   fuse_session_new          keeps the session pointer (a range of a file can be invalidated only
 *                             with it) and puts its own handlers of INIT and READ before pyfuse3's
 *   fuse_session_receive_buf  never blocks: a request that vanished between epoll and read (its
 *                             program was killed) would otherwise stop the whole event loop
 *   fuse_session_destroy      forgets the session pointer, after the last use of it has ended
 *
 * Invariants: `session` is read and used under the read side of `session_lock` and changed under the
 * write side, so that a session is never used after it was destroyed.  The lock is never taken by a
 * thread that then waits for the GIL: the GIL is released before the read side is taken and
 * acquired after it was given back.
 */
#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 35
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <fuse_lowlevel.h>

#if FUSE_MAJOR_VERSION != 3 || FUSE_MINOR_VERSION >= 17
#error "libfuse 3.17 renamed fuse_session_new(); this module knows libfuse 3.2 to 3.16"
#endif

static pthread_rwlock_t session_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct fuse_session *session;

/* pyfuse3's own init handler, and what configure() asked for. */
static void (*inner_init)(void *userdata, struct fuse_conn_info *conn);
static unsigned int wanted_readahead = UINT32_MAX;

/* pyfuse3's own read handler, and the open flags of the file of the READ that came last. */
static void (*inner_read)(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			  struct fuse_file_info *fi);
static int read_flags;

/* The next definition of *name* behind this module, which is libfuse's. */
static void *real_function(const char *name)
{
	void *function = dlsym(RTLD_NEXT, name);

	if (!function)
		Py_FatalError("libfuse3 lacks a function that pyfuse3 was linked with");
	return function;
}

/*
 * INIT: first pyfuse3, which calls Operations.init, then what pyfuse3 cannot say.
 *
 * AUTO_INVAL_DATA off and EXPLICIT_INVAL_DATA on: nobody but this daemon changes the image, and the
 * automatic kind drops a file's whole page cache when a stat follows a write.
 * HANDLE_KILLPRIV off: the kernel clears suid and sgid itself, with the caller's privileges.
 * DONT_MASK: the umask is applied by the filesystem, which knows whether a default ACL replaces it.
 * SPLICE_READ off: one read per request instead of a splice and a read.
 */
static void companion_init(void *userdata, struct fuse_conn_info *conn)
{
	int flags;

	inner_init(userdata, conn);

	conn->want &= ~(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ);
	conn->want |= conn->capable & (FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_DONT_MASK);
	if (conn->max_readahead > wanted_readahead)
		conn->max_readahead = wanted_readahead;

	flags = fcntl(fuse_session_fd(session), F_GETFL);
	if (flags >= 0)
		(void)fcntl(fuse_session_fd(session), F_SETFL, flags | O_NONBLOCK);
}

/* READ: pyfuse3 does not hand on the flags of the file. */
static void companion_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			   struct fuse_file_info *fi)
{
	read_flags = fi->flags;
	inner_read(req, ino, size, off, fi);
}

struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
				      size_t op_size, void *userdata)
{
	struct fuse_session *(*real_new)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
					 void *) = real_function("fuse_session_new");
	struct fuse_session *made;
	struct fuse_lowlevel_ops *table;

	/* libfuse copies the table, so ours need not outlive the call. */
	table = malloc(op_size);
	if (!table)
		return NULL;
	memcpy(table, op, op_size);
	inner_init = table->init;
	if (inner_init)
		table->init = companion_init;
	inner_read = table->read;
	if (inner_read)
		table->read = companion_read;
	made = real_new(args, table, op_size, userdata);
	free(table);

	pthread_rwlock_wrlock(&session_lock);
	session = made;
	pthread_rwlock_unlock(&session_lock);
	return made;
}

int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	static int (*real_receive)(struct fuse_session *, struct fuse_buf *);
	int result;

	if (!real_receive)
		real_receive = real_function("fuse_session_receive_buf");
	result = real_receive(se, buf);
	/* pyfuse3's loop starts over on EINTR, and ends the mount on EAGAIN. */
	return result == -EAGAIN ? -EINTR : result;
}

void fuse_session_destroy(struct fuse_session *se)
{
	void (*real_destroy)(struct fuse_session *) = real_function("fuse_session_destroy");

	pthread_rwlock_wrlock(&session_lock);
	if (session == se)
		session = NULL;
	pthread_rwlock_unlock(&session_lock);
	real_destroy(se);
}

PyDoc_STRVAR(configure_doc,
"configure(max_readahead)\n--\n\n"
"Before the mount: the most readahead (bytes) that INIT may agree on.");

static PyObject *configure(PyObject *module, PyObject *args)
{
	unsigned int max_readahead;

	(void)module;
	if (!PyArg_ParseTuple(args, "I:configure", &max_readahead))
		return NULL;
	wanted_readahead = max_readahead;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(has_session_doc,
"has_session()\n--\n\n"
"True while a session made by pyfuse3 is known here, that is, while ranges can be invalidated.");

static PyObject *has_session(PyObject *module, PyObject *ignored)
{
	int known;

	(void)module;
	(void)ignored;
	Py_BEGIN_ALLOW_THREADS
	pthread_rwlock_rdlock(&session_lock);
	known = session != NULL;
	pthread_rwlock_unlock(&session_lock);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(known);
}

PyDoc_STRVAR(invalidate_doc,
"invalidate(runs)\n--\n\n"
"Take pages back from the kernel, unmapping them everywhere. *runs*: a list of (ino, start, end) in\n"
"bytes, start < end.\n\n"
"Returns (bytes, error): how much of it the kernel holds no more, an inode that it does not know\n"
"included, and the errno of the last run that failed, or 0; ENOTCONN if there is no session. A dirty\n"
"page is written first, and the call waits for that WRITE to be answered: call it from a thread of\n"
"its own. The GIL is released for all of it.");

struct run {
	unsigned long long ino;
	long long start;
	long long end;
};

/* The runs in *list*, which the caller frees; NULL with an exception set if it is not such a list. */
static struct run *parse_runs(PyObject *list)
{
	Py_ssize_t i, count = PyList_GET_SIZE(list);
	struct run *runs = PyMem_RawCalloc(count ? count : 1, sizeof(*runs));

	if (!runs)
		return (struct run *)PyErr_NoMemory();
	for (i = 0; i < count; i++) {
		PyObject *item = PyList_GET_ITEM(list, i);
		struct run *run = &runs[i];

		if (!PyTuple_Check(item)) {
			PyErr_SetString(PyExc_TypeError, "a run is a tuple (ino, start, end)");
			goto fail;
		}
		if (!PyArg_ParseTuple(item, "KLL", &run->ino, &run->start, &run->end))
			goto fail;
		/* To the kernel a length of 0 means "to the end", an offset < 0 "attributes only". */
		if (run->start < 0 || run->end <= run->start) {
			PyErr_SetString(PyExc_ValueError, "a run needs 0 <= start < end");
			goto fail;
		}
	}
	return runs;
fail:
	PyMem_RawFree(runs);
	return NULL;
}

static PyObject *invalidate(PyObject *module, PyObject *args)
{
	PyObject *list;
	Py_ssize_t i, count;
	struct run *runs;
	long long done = 0;
	int error = 0;

	(void)module;
	if (!PyArg_ParseTuple(args, "O!:invalidate", &PyList_Type, &list))
		return NULL;
	count = PyList_GET_SIZE(list);
	runs = parse_runs(list);
	if (!runs)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	for (i = 0; i < count; i++) {
		const struct run *run = &runs[i];
		int result = -ENOTCONN;

		/* Taken for each run, so that the end of the session need not wait for all. */
		pthread_rwlock_rdlock(&session_lock);
		if (session)
			result = fuse_lowlevel_notify_inval_inode(session, run->ino, run->start,
								  run->end - run->start);
		pthread_rwlock_unlock(&session_lock);
		if (result == 0 || result == -ENOENT)
			done += run->end - run->start;
		else
			error = -result;
	}
	PyMem_RawFree(runs);
	Py_END_ALLOW_THREADS
	return Py_BuildValue("Li", done, error);
}

PyDoc_STRVAR(read_is_cached_doc,
"read_is_cached()\n--\n\n"
"Whether the READ that came last reads into the page cache, and not into a program (O_DIRECT).");

static PyObject *read_is_cached(PyObject *module, PyObject *ignored)
{
	(void)module;
	(void)ignored;
	return PyBool_FromLong(inner_read && !(read_flags & O_DIRECT));
}

PyDoc_STRVAR(let_kernel_zero_doc,
"let_kernel_zero(ino)\n--\n\n"
"True: a READ of inode *ino* that was not answered yet may be answered with nothing for a hole.\n\n"
"The kernel zeroes what an answer does not fill of the pages that it reads into, but takes a short\n"
"answer for the end of the file, unless the attributes of the file were made invalid since it sent\n"
"the READ: which is done here. This waits neither for pages nor for answers.");

static PyObject *let_kernel_zero(PyObject *module, PyObject *number)
{
	unsigned long long ino = PyLong_AsUnsignedLongLong(number);

	(void)module;
	if (PyErr_Occurred())
		return NULL;
	/* The thread that answers READs is the one that makes and ends the session: no lock. */
	return PyBool_FromLong(session && !fuse_lowlevel_notify_inval_inode(session, ino, -1, 0));
}

static PyMethodDef methods[] = {
	{"configure", configure, METH_VARARGS, configure_doc},
	{"has_session", has_session, METH_NOARGS, has_session_doc},
	{"invalidate", invalidate, METH_VARARGS, invalidate_doc},
	{"read_is_cached", read_is_cached, METH_NOARGS, read_is_cached_doc},
	{"let_kernel_zero", let_kernel_zero, METH_O, let_kernel_zero_doc},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "daxfs.fuse._lowlevel",
	.m_doc = "The companion of pyfuse3; see daxfs.fuse.lowlevel.",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__lowlevel(void)
{
	return PyModule_Create(&definition);
}
