/*
 * _lowlevel: the companion of pyfuse3.  It reaches what pyfuse3 3.5 does not pass on.
 *
 * The module is loaded with RTLD_GLOBAL before pyfuse3 is imported.  Three functions of libfuse that
 * pyfuse3 calls are therefore found here first; each does its small work and calls the real one:
 *
 *   fuse_session_new          (since libfuse 3.17 fuse_session_new_versioned) keeps the session
 *                             pointer (a range of a file can be invalidated only with it), puts
 *                             its own handlers of INIT, READ and WRITE before pyfuse3's, and adds
 *                             handlers of the requests that it does not know
 *   fuse_session_receive_buf  never blocks: a request that vanished between epoll and read (its
 *                             program was killed) would otherwise stop the whole event loop; and
 *                             makes COPY_FILE_RANGE_64 a request that libfuse knows
 *   fuse_session_destroy      forgets the session pointer, after the last use of it has ended; a
 *                             use that does not end in time keeps the session until the process ends
 *
 * Invariants: `session` is read and used under the read side of `session_lock` and changed under the
 * write side, so that a session is never used after it was destroyed.  The lock is never taken by a
 * thread that then waits for the GIL: the GIL is released before the read side is taken and
 * acquired after it was given back.
 *
 * FALLOCATE, LSEEK, COPY_FILE_RANGE and IOCTL are handed to one Python callable, each with a capsule
 * that stands for the request and with which it is answered, at once or later.  A request is
 * answered once: a capsule that goes unanswered answers EIO, and one that outlives its session
 * answers nothing, since libfuse's part of the request went with the session.  Capsules are made,
 * answered and destroyed, and sessions are made and destroyed, in the GIL: that is their lock.
 *
 * A page of the image that the host cannot provide (its file was cut off, its disk fails) would end
 * the daemon by SIGBUS.  Instead the page becomes one of zeroes of this process alone, which is noted:
 * whoever answers a request asks whether that has happened, before the answer.
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
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if __has_include(<fuse_lowlevel.h>)
#include <fuse_lowlevel.h>
#else
#error "the headers of libfuse 3 are missing: install libfuse3-dev (Debian, Ubuntu) or fuse3-devel"
#endif

static pthread_rwlock_t session_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct fuse_session *session;

/* How many sessions there were: a request belongs to the one that had this number. */
static unsigned long session_number;

/* What gets the requests that pyfuse3 does not know, or NULL; and whether they are routed to it. */
static PyObject *request_handler;
static int handles_requests;

/* pyfuse3's own init handler, and what configure() asked for. */
static void (*inner_init)(void *userdata, struct fuse_conn_info *conn);
static unsigned int wanted_readahead = UINT32_MAX;
static int wants_symlinks_cached;

/* pyfuse3's own read handler, and the open flags of the file of the READ that came last. */
static void (*inner_read)(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			  struct fuse_file_info *fi);
static int read_flags;

/* pyfuse3's own write handler, and whether the WRITE that came last is of the kernel's write-back. */
static void (*inner_write_buf)(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *buf, off_t off,
			       struct fuse_file_info *fi);
static int write_is_back;

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
 * ATOMIC_O_TRUNC off: the kernel opens, and empties the file by SETATTR once it has made sure that it
 * may. With the flag, a file that is being executed is emptied before open(2) fails with ETXTBSY.
 * DONT_MASK: the umask is applied by the filesystem, which knows whether a default ACL replaces it.
 * ASYNC_DIO off: a direct write is done when io_submit(2) returns, as on DAX.  After an asynchronous
 * one the kernel leaves what others have read into the page cache meanwhile, for ever stale.
 * SPLICE_READ off: one read per request instead of a splice and a read.
 * CACHE_SYMLINKS: a target never changes.
 */
static void companion_init(void *userdata, struct fuse_conn_info *conn)
{
	int flags;

	inner_init(userdata, conn);

	conn->want &= ~(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_HANDLE_KILLPRIV |
			FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_ASYNC_DIO | FUSE_CAP_SPLICE_READ);
	conn->want |= conn->capable & (FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_DONT_MASK);
	if (wants_symlinks_cached)
		conn->want |= conn->capable & FUSE_CAP_CACHE_SYMLINKS;
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

/* WRITE: pyfuse3 does not tell a program's from the kernel's. */
static void companion_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *buf, off_t off,
				struct fuse_file_info *fi)
{
	write_is_back = fi->writepage;
	inner_write_buf(req, ino, buf, off, fi);
}

/* A request that waits for its answer; req is NULL once it was answered. */
struct request {
	fuse_req_t req;
	unsigned long session_number;
};

#define REQUEST_NAME "daxfs.fuse._lowlevel.request"

/* Take libfuse's handle out of *request*, for the one answer; NULL if it went with its session. */
static fuse_req_t take_request(struct request *request)
{
	fuse_req_t req = request->req;

	request->req = NULL;
	return session && request->session_number == session_number ? req : NULL;
}

static void destroy_request(PyObject *capsule)
{
	struct request *request = PyCapsule_GetPointer(capsule, REQUEST_NAME);
	fuse_req_t req = take_request(request);

	if (req)
		fuse_reply_err(req, EIO);
	PyMem_Free(request);
}

/* A capsule that answers *req*; NULL with an exception set, and *req* answered, without memory. */
static PyObject *new_request(fuse_req_t req)
{
	struct request *request = PyMem_Malloc(sizeof(*request));
	PyObject *capsule;

	if (!request) {
		fuse_reply_err(req, ENOMEM);
		return PyErr_NoMemory();
	}
	request->req = req;
	request->session_number = session_number;
	capsule = PyCapsule_New(request, REQUEST_NAME, destroy_request);
	if (!capsule) {
		fuse_reply_err(req, ENOMEM);
		PyMem_Free(request);
	}
	return capsule;
}

/* Call the handler with the tuple *arguments*, whose reference is taken. Whatever goes wrong is
 * printed, and the end of the capsule in *arguments* answers. */
static void call_handler(PyObject *arguments)
{
	PyObject *handler = Py_XNewRef(request_handler); /* which may itself call configure() */
	PyObject *result = NULL;

	if (arguments && handler)
		result = PyObject_CallObject(handler, arguments);
	if (PyErr_Occurred())
		PyErr_WriteUnraisable(handler);
	Py_XDECREF(result);
	Py_XDECREF(arguments);
	Py_XDECREF(handler);
}

static void companion_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
				struct fuse_file_info *fi)
{
	PyGILState_STATE gil = PyGILState_Ensure();
	const struct fuse_ctx *caller = fuse_req_ctx(req);
	unsigned int uid = caller->uid, gid = caller->gid;
	int pid = caller->pid;

	(void)ino;
	call_handler(Py_BuildValue("sNKiLLIIi", "fallocate", new_request(req),
				   (unsigned long long)fi->fh, mode, (long long)offset,
				   (long long)length, uid, gid, pid));
	PyGILState_Release(gil);
}

static void companion_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
			    struct fuse_file_info *fi)
{
	PyGILState_STATE gil = PyGILState_Ensure();

	(void)ino;
	call_handler(Py_BuildValue("sNKLi", "lseek", new_request(req), (unsigned long long)fi->fh,
				   (long long)off, whence));
	PyGILState_Release(gil);
}

static void companion_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
				      struct fuse_file_info *fi_in, fuse_ino_t ino_out,
				      off_t off_out, struct fuse_file_info *fi_out, size_t len,
				      int flags)
{
	PyGILState_STATE gil = PyGILState_Ensure();

	(void)ino_in;
	(void)ino_out;
	(void)flags; /* copy_file_range(2) has none */
	call_handler(Py_BuildValue("sNKLKLn", "copy_file_range", new_request(req),
				   (unsigned long long)fi_in->fh, (long long)off_in,
				   (unsigned long long)fi_out->fh, (long long)off_out,
				   (Py_ssize_t)len));
	PyGILState_Release(gil);
}

static void companion_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
			    struct fuse_file_info *fi, unsigned int flags, const void *in_buf,
			    size_t in_bufsz, size_t out_bufsz)
{
	PyGILState_STATE gil = PyGILState_Ensure();

	(void)ino;
	(void)arg;
	(void)flags;
	call_handler(Py_BuildValue("sNKIy#n", "ioctl", new_request(req), (unsigned long long)fi->fh,
				   cmd, in_bufsz ? (const char *)in_buf : "", (Py_ssize_t)in_bufsz,
				   (Py_ssize_t)out_bufsz));
	PyGILState_Release(gil);
}

/* Put the handlers above into *table*, of *size* bytes; false if it is too old to have room. */
static int add_handlers(struct fuse_lowlevel_ops *table, size_t size)
{
	/* lseek is the youngest of them, and the last field of the four. */
	if (size < offsetof(struct fuse_lowlevel_ops, lseek) + sizeof(table->lseek))
		return 0;
	table->fallocate = companion_fallocate;
	table->lseek = companion_lseek;
	table->copy_file_range = companion_copy_file_range;
	table->ioctl = companion_ioctl;
	return 1;
}

/* A copy of *op* with the handlers above, for the caller to free once libfuse has made its own; NULL
 * without memory. */
static struct fuse_lowlevel_ops *new_table(const struct fuse_lowlevel_ops *op, size_t op_size)
{
	struct fuse_lowlevel_ops *table = malloc(op_size);

	if (!table)
		return NULL;
	memcpy(table, op, op_size);
	inner_init = table->init;
	if (inner_init)
		table->init = companion_init;
	inner_read = table->read;
	if (inner_read)
		table->read = companion_read;
	inner_write_buf = table->write_buf;
	if (inner_write_buf)
		table->write_buf = companion_write_buf;
	handles_requests = request_handler && add_handlers(table, op_size);
	return table;
}

static void keep_session(struct fuse_session *made)
{
	pthread_rwlock_wrlock(&session_lock);
	session = made;
	session_number++;
	pthread_rwlock_unlock(&session_lock);
}

/* Since libfuse 3.17 fuse_session_new() is inline, and what pyfuse3 calls is the function in it. */
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
struct fuse_session *fuse_session_new_versioned(struct fuse_args *args,
						const struct fuse_lowlevel_ops *op, size_t op_size,
						struct libfuse_version *version, void *userdata)
{
	__typeof__(&fuse_session_new_versioned) real_new =
		real_function("fuse_session_new_versioned");
	struct fuse_lowlevel_ops *table = new_table(op, op_size);
	struct fuse_session *made;

	if (!table)
		return NULL;
	made = real_new(args, table, op_size, version, userdata);
	free(table);
	keep_session(made);
	return made;
}
#else
struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
				      size_t op_size, void *userdata)
{
	__typeof__(&fuse_session_new) real_new = real_function("fuse_session_new");
	struct fuse_lowlevel_ops *table = new_table(op, op_size);
	struct fuse_session *made;

	if (!table)
		return NULL;
	made = real_new(args, table, op_size, userdata);
	free(table);
	keep_session(made);
	return made;
}
#endif

#define COPY_FILE_RANGE_OPCODE 47
#define COPY_FILE_RANGE_64_OPCODE 53

/* How each request begins: struct fuse_in_header of linux/fuse.h. */
struct request_start {
	uint32_t length;
	uint32_t opcode;
};

/*
 * Make COPY_FILE_RANGE_64 (Linux 6.18) the COPY_FILE_RANGE that libfuse knows.  The requests are
 * the same, and so are the answers in little-endian order: the upper half of the wide count is the
 * padding of the narrow one.  To let libfuse answer ENOSYS is no choice: two programs that get it at
 * the same time make the kernel believe that neither request is known, and copy holes as zeroes.
 */
static void narrow_copy(const struct fuse_buf *buf, int length)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	struct request_start *start = buf->mem;

	if (handles_requests && !(buf->flags & FUSE_BUF_IS_FD) && length >= (int)sizeof(*start) &&
	    start->opcode == COPY_FILE_RANGE_64_OPCODE)
		start->opcode = COPY_FILE_RANGE_OPCODE;
#else
	(void)buf;
	(void)length;
#endif
}

int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	static int (*real_receive)(struct fuse_session *, struct fuse_buf *);
	int result;

	if (!real_receive)
		real_receive = real_function("fuse_session_receive_buf");
	result = real_receive(se, buf);
	narrow_copy(buf, result);
	/* pyfuse3's loop starts over on EINTR, and ends the mount on EAGAIN. */
	return result == -EAGAIN ? -EINTR : result;
}

/* How long the end of a session waits for a thread that takes pages back. */
#define DESTROY_SECONDS 5

void fuse_session_destroy(struct fuse_session *se)
{
	void (*real_destroy)(struct fuse_session *) = real_function("fuse_session_destroy");
	struct timespec until;

	/*
	 * A thread may wait for a WRITE that nobody serves any more; without the right to abort the
	 * connection nothing ends that.  The session then ends with the process.
	 */
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DESTROY_SECONDS;
	if (pthread_rwlock_timedwrlock(&session_lock, &until))
		return;
	if (session == se)
		session = NULL;
	pthread_rwlock_unlock(&session_lock);
	real_destroy(se);
}

PyDoc_STRVAR(configure_doc,
"configure(max_readahead, cache_symlinks, handler)\n--\n\n"
"Before the mount: the most readahead (bytes) that INIT may agree on, whether the kernel is to keep\n"
"the targets of symbolic links, and a callable for requests that pyfuse3 does not know, or None:\n"
"then the kernel is told that there are no such operations.\n\n"
"handler(op, request, *args) is called on the thread that serves requests, with the name of the\n"
"operation, a capsule for the reply functions, and\n"
"  'fallocate'        fh, mode, offset, length, uid, gid and pid of the caller\n"
"  'lseek'            fh, offset, whence\n"
"  'copy_file_range'  fh_in, offset_in, fh_out, offset_out, length\n"
"  'ioctl'            fh, command, bytes of the argument, length of the answer\n"
"A capsule that is let go without an answer answers EIO.");

static PyObject *configure(PyObject *module, PyObject *args)
{
	unsigned int max_readahead;
	int cache_symlinks;
	PyObject *handler;

	(void)module;
	if (!PyArg_ParseTuple(args, "IpO:configure", &max_readahead, &cache_symlinks, &handler))
		return NULL;
	if (handler != Py_None && !PyCallable_Check(handler)) {
		PyErr_SetString(PyExc_TypeError, "the handler must be callable or None");
		return NULL;
	}
	wanted_readahead = max_readahead;
	wants_symlinks_cached = cache_symlinks;
	Py_XSETREF(request_handler, handler == Py_None ? NULL : Py_NewRef(handler));
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

PyDoc_STRVAR(has_operations_doc,
"has_operations()\n--\n\n"
"True if the session that was made last hands the requests that pyfuse3 does not know to the\n"
"handler of configure().");

static PyObject *has_operations(PyObject *module, PyObject *ignored)
{
	(void)module;
	(void)ignored;
	return PyBool_FromLong(handles_requests);
}

/* The converter ("O&") of a capsule that was not answered yet. */
static int to_request(PyObject *capsule, void *result)
{
	struct request *request = PyCapsule_GetPointer(capsule, REQUEST_NAME);

	if (!request)
		return 0;
	if (!request->req) {
		PyErr_SetString(PyExc_ValueError, "the request was answered already");
		return 0;
	}
	*(struct request **)result = request;
	return 1;
}

PyDoc_STRVAR(reply_err_doc,
"reply_err(request, error)\n--\n\n"
"Answer with an errno, or with 0: it is done. As with all replies: nobody is told where the kernel\n"
"gave the request up or its session has ended. ValueError: it was answered already.");

static PyObject *reply_err(PyObject *module, PyObject *args)
{
	struct request *request;
	fuse_req_t req;
	int error;

	(void)module;
	if (!PyArg_ParseTuple(args, "O&i:reply_err", to_request, &request, &error))
		return NULL;
	req = take_request(request);
	if (req)
		fuse_reply_err(req, error);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_lseek_doc,
"reply_lseek(request, offset)\n--\n\n"
"Answer LSEEK.");

static PyObject *reply_lseek(PyObject *module, PyObject *args)
{
	struct request *request;
	fuse_req_t req;
	long long offset;

	(void)module;
	if (!PyArg_ParseTuple(args, "O&L:reply_lseek", to_request, &request, &offset))
		return NULL;
	req = take_request(request);
	if (req)
		fuse_reply_lseek(req, offset);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_write_doc,
"reply_write(request, count)\n--\n\n"
"Answer COPY_FILE_RANGE with the number of bytes that were copied.");

static PyObject *reply_write(PyObject *module, PyObject *args)
{
	struct request *request;
	fuse_req_t req;
	Py_ssize_t count;

	(void)module;
	if (!PyArg_ParseTuple(args, "O&n:reply_write", to_request, &request, &count))
		return NULL;
	req = take_request(request);
	if (req)
		fuse_reply_write(req, count);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_ioctl_doc,
"reply_ioctl(request, answer)\n--\n\n"
"Answer IOCTL with bytes, as many as were asked for.");

static PyObject *reply_ioctl(PyObject *module, PyObject *args)
{
	struct request *request;
	fuse_req_t req;
	const char *answer;
	Py_ssize_t length;

	(void)module;
	if (!PyArg_ParseTuple(args, "O&y#:reply_ioctl", to_request, &request, &answer, &length))
		return NULL;
	req = take_request(request);
	if (req)
		fuse_reply_ioctl(req, 0, answer, length);
	Py_RETURN_NONE;
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

/* The runs in *items*, which the caller frees; NULL with an exception set if they are none. */
static struct run *parse_runs(PyObject *items)
{
	Py_ssize_t i, count = PyTuple_GET_SIZE(items);
	struct run *runs = PyMem_RawCalloc(count ? count : 1, sizeof(*runs));

	if (!runs)
		return (struct run *)PyErr_NoMemory();
	for (i = 0; i < count; i++) {
		PyObject *item = PyTuple_GET_ITEM(items, i);
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
	PyObject *list, *items;
	Py_ssize_t i, count;
	struct run *runs;
	long long done = 0;
	int error = 0;

	(void)module;
	if (!PyArg_ParseTuple(args, "O!:invalidate", &PyList_Type, &list))
		return NULL;
	/* What is no int can change the list while it is made one; it cannot change the copy. */
	items = PyList_AsTuple(list);
	if (!items)
		return NULL;
	count = PyTuple_GET_SIZE(items);
	runs = parse_runs(items);
	Py_DECREF(items);
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

PyDoc_STRVAR(write_is_written_back_doc,
"write_is_written_back()\n--\n\n"
"Whether the WRITE that came last is of pages that a program stored to (or, with the write-back\n"
"cache, wrote to), and not of a program that waits for it in write(2). None: that is not known.");

static PyObject *write_is_written_back(PyObject *module, PyObject *ignored)
{
	(void)module;
	(void)ignored;
	if (!session || !inner_write_buf)
		Py_RETURN_NONE;
	return PyBool_FromLong(write_is_back);
}

PyDoc_STRVAR(invalidate_attributes_doc,
"invalidate_attributes(ino)\n--\n\n"
"Have the kernel ask for the attributes of inode *ino* again; whether it was told. This waits\n"
"neither for pages nor for answers.");

static PyObject *invalidate_attributes(PyObject *module, PyObject *number)
{
	unsigned long long ino = PyLong_AsUnsignedLongLong(number);

	(void)module;
	if (PyErr_Occurred())
		return NULL;
	/* The thread that answers requests is the one that makes and ends the session: no lock. */
	return PyBool_FromLong(session && !fuse_lowlevel_notify_inval_inode(session, ino, -1, 0));
}

/* The mapping of the image, and whether a page of it was lost. */
static uintptr_t guarded_start, guarded_end, page_size;
static volatile sig_atomic_t page_is_lost;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	uintptr_t page = (uintptr_t)info->si_addr & ~(page_size - 1);

	(void)context;
	if (page >= guarded_start && page < guarded_end &&
	    mmap((void *)page, page_size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
		page_is_lost = 1;
		return;
	}
	/* The access is repeated, and ends the process as without a handler. */
	signal(number, SIG_DFL);
}

PyDoc_STRVAR(guard_doc,
"guard(buffer)\n--\n\n"
"From now on survive SIGBUS in *buffer*, a mapping of whole pages; with None, in nothing. The page is\n"
"one of zeroes afterwards, and has_lost_page() true.");

static PyObject *guard(PyObject *module, PyObject *buffer)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
	Py_buffer view;

	(void)module;
	guarded_start = guarded_end = 0;
	page_is_lost = 0;
	if (buffer == Py_None)
		Py_RETURN_NONE;
	if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
	guarded_start = (uintptr_t)view.buf;
	guarded_end = guarded_start + (uintptr_t)view.len;
	PyBuffer_Release(&view);
	if (sigaction(SIGBUS, &action, NULL) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(has_lost_page_doc,
"has_lost_page()\n--\n\n"
"Whether a page of the guarded buffer could not be provided since guard().");

static PyObject *has_lost_page(PyObject *module, PyObject *ignored)
{
	(void)module;
	(void)ignored;
	return PyBool_FromLong(page_is_lost);
}

static PyMethodDef methods[] = {
	{"guard", guard, METH_O, guard_doc},
	{"has_lost_page", has_lost_page, METH_NOARGS, has_lost_page_doc},
	{"configure", configure, METH_VARARGS, configure_doc},
	{"has_session", has_session, METH_NOARGS, has_session_doc},
	{"has_operations", has_operations, METH_NOARGS, has_operations_doc},
	{"invalidate", invalidate, METH_VARARGS, invalidate_doc},
	{"invalidate_attributes", invalidate_attributes, METH_O, invalidate_attributes_doc},
	{"read_is_cached", read_is_cached, METH_NOARGS, read_is_cached_doc},
	{"reply_err", reply_err, METH_VARARGS, reply_err_doc},
	{"reply_ioctl", reply_ioctl, METH_VARARGS, reply_ioctl_doc},
	{"reply_lseek", reply_lseek, METH_VARARGS, reply_lseek_doc},
	{"reply_write", reply_write, METH_VARARGS, reply_write_doc},
	{"write_is_written_back", write_is_written_back, METH_NOARGS, write_is_written_back_doc},
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
