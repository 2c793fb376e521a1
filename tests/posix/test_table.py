"""POSIX behaviour, call by call: errnos and side effects, as root and as three other users.

The scripts are in the language of posixscript. What is left out is what FUSE makes impossible, see
the README.
"""

import os
from collections.abc import Callable

import pytest
from daxmount import DaxMount, daxfs
from posixscript import Cast

pytestmark = pytest.mark.mount

MOUNT = {"options": "suid,dev" if os.geteuid() == 0 else "", "size": "64M"}
MakeMount = Callable[..., DaxMount]

SCRIPTS = {
    "path resolution": """
        root open f creat|wronly -> ok
        root symlink loop loop -> ok
        root symlink b a -> ok
        root symlink a b -> ok
        root symlink none dangling -> ok
        root mkdir d 0700 -> ok
        root mkdir d/e -> ok
        root open d/e/f creat|wronly -> ok
        root symlink d/e s -> ok
        root stat s/f type -> file
        root stat s/../e/f type -> file
        root stat dangling type -> ENOENT
        root lstat dangling type -> link
        root stat "" type -> ENOENT
        root open "" rdonly -> ENOENT
        root mkdir "" -> ENOENT
        root unlink "" -> ENOENT
        root rename "" f -> ENOENT
        root rename f "" -> ENOENT
        root rename f none/f -> ENOENT
        root mkdir none/d -> ENOENT
        root mkdir f/d -> ENOTDIR
        root mkdir loop/d -> ELOOP
        root mkdir a/d -> ELOOP
        root mkdir dangling/d -> ENOENT
        root mkdir {255} -> ok
        root rmdir {255} -> ok
        root mkdir {256} -> ENAMETOOLONG
        alice mkdir d/x -> EACCES
        root rmdir none/d -> ENOENT
        root rmdir f/d -> ENOTDIR
        root rmdir loop/d -> ELOOP
        root rmdir {256} -> ENAMETOOLONG
        alice rmdir d/e -> EACCES
        root mkfifo none/p -> ENOENT
        root mkfifo f/p -> ENOTDIR
        root mkfifo loop/p -> ELOOP
        root mkfifo {255} -> ok
        root unlink {255} -> ok
        root mkfifo {256} -> ENAMETOOLONG
        alice mkfifo d/p -> EACCES
        root mknod none/p char -> ENOENT
        root mknod f/p char -> ENOTDIR
        root mknod loop/p block -> ELOOP
        root mknod {255} char -> ok
        root unlink {255} -> ok
        root mknod {256} char -> ENAMETOOLONG
        alice mknod d/p file -> EACCES
        root symlink x none/l -> ENOENT
        root symlink x f/l -> ENOTDIR
        root symlink x loop/l -> ELOOP
        root symlink x {255} -> ok
        root unlink {255} -> ok
        root symlink x {256} -> ENAMETOOLONG
        root symlink {1023} long -> ok
        root stat long type -> ENAMETOOLONG
        root symlink {4096} longer -> ENAMETOOLONG
        alice symlink x d/l -> EACCES
        root unlink none/f -> ENOENT
        root unlink none -> ENOENT
        root unlink f/f -> ENOTDIR
        root unlink loop/f -> ELOOP
        root unlink {256} -> ENAMETOOLONG
        alice unlink d/e -> EACCES
        root link none l -> ENOENT
        root link none/f l -> ENOENT
        root link f none/l -> ENOENT
        root link f/f l -> ENOTDIR
        root link f f/l -> ENOTDIR
        root link loop/f l -> ELOOP
        root link f loop/l -> ELOOP
        root link {256} l -> ENAMETOOLONG
        root link f {256} -> ENAMETOOLONG
        root link f {255} -> ok
        root unlink {255} -> ok
        alice link d/e/f l -> EACCES
        root rename none x -> ENOENT
        root rename none/f x -> ENOENT
        root rename f/f x -> ENOTDIR
        root rename f f/x -> ENOTDIR
        root rename loop/f x -> ELOOP
        root rename f loop/x -> ELOOP
        root rename {256} x -> ENAMETOOLONG
        root rename f {256} -> ENAMETOOLONG
        root rename f {255} -> ok
        root rename {255} f -> ok
        alice rename d/e x -> EACCES
        alice rename f d/x -> EACCES
        root open none/f rdonly -> ENOENT
        root open none rdonly -> ENOENT
        root open none/f creat|wronly -> ENOENT
        root open f/f creat|wronly -> ENOTDIR
        root open loop rdonly -> ELOOP
        root open loop/f creat|wronly -> ELOOP
        root open {256} creat|wronly -> ENAMETOOLONG
        alice open d/e/f rdonly -> EACCES
        root chmod none 0600 -> ENOENT
        root chmod none/f 0600 -> ENOENT
        root chmod dangling 0600 -> ENOENT
        root chmod f/f 0600 -> ENOTDIR
        root chmod loop 0600 -> ELOOP
        root chmod {256} 0600 -> ENAMETOOLONG
        alice chmod d/e 0600 -> EACCES
        root chown none 0 0 -> ENOENT
        root chown f/f 0 0 -> ENOTDIR
        root chown loop 0 0 -> ELOOP
        root lchown loop 1 1 -> ok
        root lstat loop uid,gid -> 1,1
        root chown {256} 0 0 -> ENAMETOOLONG
        alice chown d/e 60001 60001 -> EACCES
        root truncate none 0 -> ENOENT
        root truncate f/f 0 -> ENOTDIR
        root truncate loop 0 -> ELOOP
        root truncate {256} 0 -> ENAMETOOLONG
        alice truncate d/e/f 0 -> EACCES
        root utimes none 1 1 -> ENOENT
        root utimes f/f 1 1 -> ENOTDIR
        root utimes loop 1 1 -> ELOOP
        root utimes {256} 1 1 -> ENAMETOOLONG
        alice utimes d/e 1 1 -> EACCES
        root readlink none -> ENOENT
        root readlink f/f -> ENOTDIR
        root readlink loop/f -> ELOOP
        root readlink f -> EINVAL
        root readlink d -> EINVAL
        root readlink {256} -> ENAMETOOLONG
        root readlink {255} -> ENOENT
        alice ls d -> EACCES
        root ls f -> ENOTDIR
        root ls d -> e
        root chdir f -> ENOTDIR
        root stat f/ type -> ENOTDIR
        root stat f/. type -> ENOTDIR
        root stat d/. type -> dir
        root stat d/e/.. mode -> 0700
        root same d/e/.. d -> yes
        root setxattr none user.x y -> ENOENT
        root getxattr f user.none -> ENODATA
    """,
    "mkdir": """
        root umask 022 -> ok
        root mkdir d 0755 -> ok
        root lstat d type,mode,nlink,uid,gid -> dir,0755,2,0,0
        root mkdir d -> EEXIST
        root umask 077 -> ok
        root mkdir e 0755 -> ok
        root lstat e mode -> 0700
        root umask 070 -> ok
        root mkdir g 0345 -> ok
        root lstat g mode -> 0305
        root umask 0 -> ok
        root mkdir h 01777 -> ok
        root lstat h mode -> 1777
        root umask 022 -> ok
        root open f creat|wronly -> ok
        root mkdir f -> EEXIST
        root symlink none l -> ok
        root mkdir l -> EEXIST
        root mkfifo p -> ok
        root mkdir p -> EEXIST
        root bind s -> ok
        root mkdir s -> EEXIST
        root mkdir . -> EEXIST
        root mkdir d/. -> EEXIST
        root mkdir d/new/. -> ENOENT
        root mkdir d/x/ -> ok
        root moves d mkdir d/y -> d:mc
        root stat d nlink -> 4
        root moves d mkdir d/y -> EEXIST
        alice mkdir d/z -> EACCES
        root chmod d 0777 -> ok
        alice mkdir d/z -> ok
        alice lstat d/z uid,gid,mode -> 60001,60001,0755
        root chmod d 02777 -> ok
        root chown d 60002 60002 -> ok
        root chmod d 02777 -> ok
        alice mkdir d/inherits -> ok
        alice lstat d/inherits uid,gid,mode -> 60001,60002,2755
        alice open d/inherits/f creat|wronly -> ok
        alice lstat d/inherits/f uid,gid,mode -> 60001,60002,0644
    """,
    "rmdir": """
        root mkdir d -> ok
        root mkdir d/e -> ok
        root stat d nlink -> 3
        root rmdir d -> ENOTEMPTY
        root moves d rmdir d/e -> d:mc
        root stat d nlink -> 2
        root rmdir d/e -> ENOENT
        root rmdir d/. -> EINVAL
        root rmdir d/.. -> ENOTEMPTY
        root open d/f creat|wronly -> ok
        root rmdir d/f -> ENOTDIR
        root rmdir d -> ENOTEMPTY
        root unlink d/f -> ok
        root symlink d s -> ok
        root rmdir s -> ENOTDIR
        root mkfifo d/p -> ok
        root rmdir d/p -> ENOTDIR
        root rmdir d -> ENOTEMPTY
        root unlink d/p -> ok
        root rmdir d/ -> ok
        root lstat d type -> ENOENT
        root mkdir sticky 01777 -> ok
        root chmod sticky 01777 -> ok
        alice mkdir sticky/a 0777 -> ok
        bob rmdir sticky/a -> EPERM
        bob rename sticky/a sticky/b -> EPERM
        alice rmdir sticky/a -> ok
        bob mkdir sticky/b -> ok
        root rmdir sticky/b -> ok
        root chown sticky 60003 60003 -> ok
        alice mkdir sticky/a -> ok
        carol rmdir sticky/a -> ok
        root mkdir closed 0755 -> ok
        root mkdir closed/d 0777 -> ok
        alice rmdir closed/d -> EACCES
        root mkdir busy -> ok
        root hold h busy directory|rdonly -> ok
        root rmdir busy -> ok
        root fstat h nlink -> 0
        root fls h ->
        root drop h -> ok
    """,
    "open": """
        root open f creat|wronly 0640 -> ok
        root lstat f type,mode,uid,gid,nlink,size -> file,0640,0,0,1,0
        root open f creat|excl|wronly -> EEXIST
        root symlink none l -> ok
        root open l creat|excl|wronly -> EEXIST
        root open l creat|wronly -> ok
        root lstat none type -> file
        root open l rdonly|nofollow -> ELOOP
        root mkdir d -> ok
        root open d rdonly -> ok
        root open d wronly -> EISDIR
        root open d rdwr -> EISDIR
        root open d rdonly|trunc -> EISDIR
        root open d creat|rdonly -> EISDIR
        root open f rdonly|directory -> ENOTDIR
        root open d rdonly|directory -> ok
        root umask 0151 -> ok
        root open m creat|rdwr 0345 -> ok
        root lstat m mode -> 0204
        root umask 022 -> ok
        root open s creat|rdwr 06755 -> ok
        root lstat s mode -> 6755
        root moves . open n creat|wronly -> .:mc
        root moves f open f rdonly -> f:-
        root moves f open f wronly -> f:-
        root write f data -> ok
        root moves f open f wronly|trunc -> f:mc
        root lstat f size -> 0
        root moves f open f wronly|trunc -> f:mc
        root moves .,f open f creat|wronly -> .:- f:-
        root mkfifo p -> ok
        root open p wronly|nonblock -> ENXIO
        root open p rdonly|nonblock -> ok
        root open p rdwr -> ok
        root bind sock -> ok
        root open sock rdonly -> ENXIO
        root open sock rdwr -> ENXIO
        root mknod null char 0666 1 3 -> ok
        root open null rdwr -> ok
        root mknod nodev char 0666 200 200 -> ok
        root open nodev rdonly -> ENXIO
        alice open f rdwr -> EACCES
        alice open f rdonly -> EACCES
        root chmod f 0644 -> ok
        alice open f rdonly -> ok
        alice open f wronly -> EACCES
        alice open f rdonly|trunc -> EACCES
        root chmod f 0622 -> ok
        alice open f wronly -> ok
        alice open f rdwr -> EACCES
        alice open f wronly|trunc -> ok
        root chown f 60001 60001 -> ok
        root chmod f 0070 -> ok
        alice open f rdonly -> EACCES
        carol open f rdwr -> ok
        bob open f rdonly -> EACCES
        root chmod f 0007 -> ok
        carol open f rdonly -> EACCES
        bob open f rdwr -> ok
        root chmod f 0700 -> ok
        alice open f rdwr -> ok
        carol open f rdonly -> EACCES
        root open f rdonly -> ok
        alice open d/x creat|wronly -> EACCES
        root chmod d 0777 -> ok
        alice open d/x creat|wronly 0 -> ok
        alice open d/x rdonly -> EACCES
        alice hold h d/y creat|rdwr 0 -> ok
        alice fwrite h "though it has no rights" -> ok
        alice fread h -> "though it has no rights"
        alice drop h -> ok
        root chmod d 0666 -> ok
        alice open d/x rdonly -> EACCES
        root chmod d 0711 -> ok
        alice chmod d/x 0600 -> ok
        alice open d/x rdonly -> ok
        alice ls d -> EACCES
        alice open f rdonly|noatime -> ok
        bob open f rdonly|noatime -> EACCES
    """,
    "link": """
        root open f creat|wronly -> ok
        root moves f,. link f g -> f:c .:mc
        root lstat g nlink -> 2
        root same f g -> yes
        root link f g -> EEXIST
        root link f f -> EEXIST
        root mkdir d -> ok
        root link d e -> EPERM
        root link f d -> EEXIST
        root link f d/h -> ok
        root chmod g 0666 -> ok
        root lstat d/h mode,nlink -> 0666,3
        root write f text -> ok
        root read d/h -> text
        root unlink f -> ok
        root lstat g nlink -> 2
        root moves g unlink d/h -> g:c
        root lstat g nlink -> 1
        root symlink g s -> ok
        root link s t -> ok
        root lstat t type,nlink -> link,2
        root mkfifo p -> ok
        root link p q -> ok
        root lstat q type,nlink -> fifo,2
        root mknod c char 0600 1 3 -> ok
        root link c c2 -> ok
        root lstat c2 type,nlink,major,minor -> char,2,1,3
        alice link g d/a -> EACCES
        root mkdir into 0755 -> ok
        root chown g 60001 60001 -> ok
        alice link g into/g -> EACCES
        root chmod into 0777 -> ok
        alice link g into/g -> ok
        root hold h g rdonly -> ok
        root unlink g -> ok
        root unlink into/g -> ok
        root fstat h nlink -> 0
        root fread h -> text
        root link /proc/self/fd/none x -> ENOENT
        root link f /proc/x -> ENOENT
    """,
    "symlink": """
        root symlink target l -> ok
        root lstat l type,size,mode,nlink -> link,6,0777,1
        root readlink l -> target
        root symlink other l -> EEXIST
        root open f creat|wronly -> ok
        root symlink x f -> EEXIST
        root mkdir d -> ok
        root symlink x d -> EEXIST
        root moves d symlink x d/l -> d:mc
        root umask 077 -> ok
        root symlink f masked -> ok
        root lstat masked mode -> 0777
        root umask 022 -> ok
        root chmod masked 0640 -> ok
        root stat f mode -> 0640
        root lchown masked 7 8 -> ok
        root lstat masked uid,gid -> 7,8
        root lstat f uid,gid -> 0,0
        alice symlink x d/m -> EACCES
        root unlink masked -> ok
        root lstat f type -> file
        root symlink d dl -> ok
        root open dl/g creat|wronly -> ok
        root lstat d/g type -> file
        root unlink dl -> ok
        root symlink {4095} full -> ok
        root lstat full size -> 4095
        root readlink full -> {4095}
    """,
    "mkfifo": """
        root mkfifo p 0644 -> ok
        root lstat p type,mode,nlink,uid,gid,size -> fifo,0644,1,0,0,0
        root mkfifo p -> EEXIST
        root umask 077 -> ok
        root mkfifo q 0755 -> ok
        root lstat q mode -> 0700
        root umask 022 -> ok
        root mkdir d -> ok
        root mkfifo d -> EEXIST
        root moves d mkfifo d/p -> d:mc
        alice mkfifo d/q -> EACCES
        root chmod d 0777 -> ok
        alice mkfifo d/q 0600 -> ok
        root lstat d/q uid,gid,mode -> 60001,60001,0600
        root hold p p rdwr -> ok
        root fwrite p hello -> ok
        root drop p -> ok
    """,
    "mknod": """
        root mknod c char 0640 4 5 -> ok
        root lstat c type,mode,nlink,major,minor -> char,0640,1,4,5
        root mknod b block 0600 259 70000 -> ok
        root lstat b type,major,minor -> block,259,70000
        root mknod f file 0600 -> ok
        root lstat f type,size -> file,0
        root mknod s socket 0600 -> ok
        root lstat s type -> socket
        root mknod p fifo 0600 -> ok
        root mknod p fifo -> EEXIST
        root mknod c char -> EEXIST
        root mkdir d 0777 -> ok
        root chmod d 0777 -> ok
        root moves d mknod d/c char 0600 1 3 -> d:mc
        alice mknod d/x char 0600 1 3 -> EPERM
        alice mknod d/x block 0600 1 3 -> EPERM
        alice mknod d/x fifo -> ok
        alice mknod d/y file -> ok
        root mknod d/c char -> EEXIST
        alice mknod d/c char -> EEXIST
    """,
    "unlink": """
        root open f creat|wronly -> ok
        root unlink f -> ok
        root lstat f type -> ENOENT
        root unlink f -> ENOENT
        root mkdir d -> ok
        root unlink d -> EISDIR
        root unlink d/ -> EISDIR
        root unlink . -> EISDIR
        root open d/f creat|wronly -> ok
        root moves d unlink d/f -> d:mc
        root symlink d s -> ok
        root unlink s -> ok
        root lstat d type -> dir
        root mkfifo p -> ok
        root unlink p -> ok
        root bind sock -> ok
        root unlink sock -> ok
        root open d/g creat|wronly 0666 -> ok
        root chmod d/g 0666 -> ok
        alice unlink d/g -> EACCES
        root chmod d 0777 -> ok
        alice unlink d/g -> ok
        root open g creat|wronly -> ok
        root unlink g/ -> ENOTDIR
        root hold h g rdwr -> ok
        root fwrite h text -> ok
        root unlink g -> ok
        root fstat h nlink,size -> 0,4
        root fread h -> text
        root fchmod h 0600 -> ok
        root fstat h mode -> 0600
        root ftruncate h 2 -> ok
        root fread h -> te
        root drop h -> ok
        root mkdir sticky -> ok
        root chmod sticky 01777 -> ok
        alice open sticky/f creat|wronly 0666 -> ok
        alice chmod sticky/f 0666 -> ok
        bob unlink sticky/f -> EPERM
        bob rename sticky/f sticky/g -> EPERM
        bob open sticky/mine creat|wronly -> ok
        bob rename sticky/mine sticky/f -> EPERM
        carol unlink sticky/f -> EPERM
        alice rename sticky/f sticky/g -> ok
        alice unlink sticky/g -> ok
        root unlink sticky/mine -> ok
        alice open sticky/f creat|wronly -> ok
        root chown sticky 60002 60002 -> ok
        root chmod sticky 01777 -> ok
        bob unlink sticky/f -> ok
    """,
    "rename": """
        root open f creat|wronly -> ok
        root moves f>g,. rename f g -> g:c .:mc
        root lstat f type -> ENOENT
        root rename g g -> ok
        root mkdir d -> ok
        root mkdir e -> ok
        root moves g>d/g,.,d rename g d/g -> d/g:c .:mc d:mc
        root rename d/g d/h -> ok
        root stat . nlink -> 4
        root moves e>d/e,.,d rename e d/e -> d/e:c .:mc d:mc
        root stat . nlink -> 3
        root stat d nlink -> 3
        root same d/e/.. d -> yes
        root rename d d/e -> EINVAL
        root rename d d/e/x -> EINVAL
        root rename d/e d -> ENOTEMPTY
        root rename d/. x -> EBUSY
        root rename d/.. x -> EBUSY
        root rename d/e . -> EBUSY
        root rename d/h d/e -> EISDIR
        root rename d/e d/h -> ENOTDIR
        root mkdir full -> ok
        root open full/x creat|wronly -> ok
        root rename d/e full -> ENOTEMPTY
        root rename full d/e -> ok
        root stat d nlink -> 3
        root ls d/e -> x
        root open a creat|wronly -> ok
        root write a new -> ok
        root hold old d/h rdonly -> ok
        root rename a d/h -> ok
        root fstat old nlink -> 0
        root read d/h -> new
        root drop old -> ok
        root link d/h d/same -> ok
        root rename d/h d/same -> ok
        root lstat d/h nlink -> 2
        root symlink d/e l -> ok
        root rename l m -> ok
        root lstat m type -> link
        root rename m/x d/x -> ok
        root rename d/h m -> ok
        root lstat m type -> file
        root mkfifo p -> ok
        root rename p m -> ok
        root lstat m type -> fifo
        root rename m d -> EISDIR
        root rename d m -> ENOTDIR
        root rename d/same d/same/ -> ENOTDIR
        root mkdir closed -> ok
        root open closed/f creat|wronly -> ok
        alice rename closed/f mine -> EACCES
        root open mine creat|wronly -> ok
        root chown mine 60001 60001 -> ok
        alice rename mine closed/mine -> EACCES
        root mkdir sticky -> ok
        root chmod sticky 01777 -> ok
        alice mkdir sticky/d -> ok
        alice open sticky/f creat|wronly -> ok
        bob rename sticky/f f -> EPERM
        bob open b creat|wronly -> ok
        bob rename b sticky/f -> EPERM
        bob rename b sticky/b -> ok
        root mkdir notmine 0755 -> ok
        root mkdir to -> ok
        root chmod to 0777 -> ok
        bob rename notmine to/x -> EACCES
        alice mkdir to/mine -> ok
        root mkdir to2 -> ok
        root chmod to2 0777 -> ok
        alice rename to/mine to2/mine -> ok
        root stat to nlink -> 2
        root stat to2 nlink -> 3
        bob rename to2/mine to2/m2 -> ok
        bob rename to2/m2 to/m2 -> EACCES
    """,
    "rename with flags": """
        root open f creat|wronly -> ok
        root mkdir d -> ok
        root rename f d 1 -> EEXIST
        root rename f f 1 -> EEXIST
        root rename f g 1 -> ok
        root rename none d 2 -> ENOENT
        root rename g none 2 -> ENOENT
        root moves g>d,d>g,. rename g d 2 -> d:c g:c .:mc
        root lstat g type -> dir
        root lstat d type -> file
        root mkdir g/e -> ok
        root rename g g/e 2 -> EINVAL
        root rename g/e g 2 -> EINVAL
        root rename d g/e 2 -> ok
        root stat g nlink -> 2
        root stat . nlink -> 4
        root rename d g 3 -> EINVAL
        root rename d g 64 -> EINVAL
    """,
    "chmod": """
        root open f creat|wronly -> ok
        root moves f,. chmod f 0111 -> f:c .:-
        root lstat f mode -> 0111
        root moves f chmod f 0111 -> f:c
        root mkdir d -> ok
        root moves d chmod d 0700 -> d:c
        root chmod f 07777 -> ok
        root lstat f mode -> 7777
        root mkfifo p -> ok
        root chmod p 0310 -> ok
        root lstat p type,mode -> fifo,0310
        root mknod c char 0600 1 3 -> ok
        root chmod c 0312 -> ok
        root lstat c mode -> 0312
        alice chmod f 0600 -> EPERM
        root chown f 60001 60001 -> ok
        alice chmod f 0640 -> ok
        carol chmod f 0600 -> EPERM
        bob chmod f 0600 -> EPERM
        alice chmod f 02755 -> ok
        root lstat f mode -> 2755
        root chown f 60001 60002 -> ok
        alice chmod f 02755 -> ok
        root lstat f mode -> 0755
        alice chmod f 04755 -> ok
        root lstat f mode -> 4755
        alice chmod f 01644 -> ok
        root lstat f mode -> 1644
        root hold h f rdwr -> ok
        root fchmod h 0400 -> ok
        root fwrite h "after chmod" -> ok
        root lstat f mode -> 0400
        root drop h -> ok
    """,
    "chown": """
        root open f creat|wronly -> ok
        root moves f,. chown f 60001 60002 -> f:c .:-
        root lstat f uid,gid -> 60001,60002
        root chown f -1 60003 -> ok
        root lstat f uid,gid -> 60001,60003
        root chown f 60002 -1 -> ok
        root lstat f uid,gid -> 60002,60003
        root chown f 4294967294 4294967294 -> ok
        root lstat f uid,gid -> 4294967294,4294967294
        root chown f 60003 60003 -> ok
        alice chown f 60001 -1 -> EPERM
        alice chown f -1 60001 -> EPERM
        carol chown f -1 60001 -> ok
        root lstat f uid,gid -> 60003,60001
        carol chown f -1 60002 -> EPERM
        carol chown f 60001 -1 -> EPERM
        carol chown f 60003 60003 -> ok
        root symlink f l -> ok
        root chown l 60001 60001 -> ok
        root lstat f uid,gid -> 60001,60001
        root lstat l uid,gid -> 0,0
        root lchown l 60002 60002 -> ok
        root lstat l uid,gid -> 60002,60002
        root lstat f uid,gid -> 60001,60001
        root mkdir d -> ok
        root chmod d 06777 -> ok
        root chown d 60001 60001 -> ok
        root lstat d mode -> 6777
    """,
    "chown clears suid and sgid": """
        root open f creat|wronly -> ok
        root chown f 60001 60001 -> ok
        root chmod f 06555 -> ok
        alice chown f -1 60001 -> ok
        root lstat f mode -> 0555
        root chmod f 06555 -> ok
        root chown f 60001 60001 -> ok
        root lstat f mode -> 0555
        root chmod f 06544 -> ok
        root chown f 60002 60002 -> ok
        root lstat f mode -> 2544
        root chmod f 02755 -> ok
        root chown f -1 60002 -> ok
        root lstat f mode -> 0755
        root chmod f 04755 -> ok
        root chown f 60001 -1 -> ok
        root lstat f mode -> 0755
    """,
    "writing clears suid and sgid": """
        root open f creat|wronly -> ok
        root chown f 60001 60001 -> ok
        root write f "some contents" -> ok
        root chmod f 06777 -> ok
        bob write f x -> ok
        root lstat f mode -> 0777
        root chmod f 06777 -> ok
        bob write f x wronly|direct -> ok
        root lstat f mode -> 0777
        root chmod f 06777 -> ok
        bob truncate f 5 -> ok
        root lstat f mode -> 0777
        root chmod f 06777 -> ok
        bob open f wronly|trunc -> ok
        root lstat f mode -> 0777
        root chmod f 06777 -> ok
        bob hold h f rdwr -> ok
        root lstat f mode -> 6777
        bob ftruncate h 10 -> ok
        root lstat f mode -> 0777
        bob drop h -> ok
        root chmod f 06777 -> ok
        alice write f x -> ok
        root lstat f mode -> 0777
        root chmod f 06777 -> ok
        root open f wronly|trunc -> ok
        root lstat f mode -> 6777
        root write f root -> ok
        root lstat f mode -> 6777
        root truncate f 0 -> ok
        root lstat f mode -> 6777
        root chmod f 06767 -> ok
        alice open f wronly|trunc -> ok
        root lstat f mode -> 2767
        alice write f "not the sgid of one who is in the group" -> ok
        root lstat f mode -> 2767
    """,
    "truncate": """
        root open f creat|wronly -> ok
        root write f 1234567 -> ok
        root moves f truncate f 3 -> f:mc
        root read f -> 123
        root truncate f 1000000 -> ok
        root lstat f size -> 1000000
        root truncate f 0 -> ok
        root lstat f size,blocks -> 0,0
        root truncate f -1 -> EINVAL
        root truncate f 17592186044416 -> ok
        root lstat f size,blocks -> 17592186044416,0
        root truncate f 17592186044417 -> EFBIG
        root truncate f 1125899906842624 -> EFBIG
        root truncate f 9223372036854775807 -> EFBIG
        root lstat f size -> 17592186044416
        root truncate f 0 -> ok
        root mkdir d -> ok
        root truncate d 0 -> EISDIR
        root mkfifo p -> ok
        root truncate p 0 -> EINVAL
        root symlink f l -> ok
        root truncate l 10 -> ok
        root lstat f size -> 10
        alice truncate f 0 -> EACCES
        root chmod f 0644 -> ok
        alice truncate f 0 -> EACCES
        root chmod f 0666 -> ok
        alice truncate f 0 -> ok
        root hold h f rdonly -> ok
        root ftruncate h 5 -> EINVAL
        root drop h -> ok
        root hold h f rdwr -> ok
        root moves f ftruncate h 5 -> f:mc
        root moves f ftruncate h 5 -> f:mc
        root ftruncate h -1 -> EINVAL
        root ftruncate h 1125899906842624 -> EFBIG
        root drop h -> ok
    """,
    "utimensat": """
        root open f creat|wronly 0644 -> ok
        root utimes f 1000 2000 -> ok
        root lstat f atime,mtime -> 1000,2000
        root moves f utimes f 3000 4000 -> f:amc
        root moves f utimes f -> f:amc
        root utimes f -1 -2 -> ok
        root lstat f atime,mtime -> -1,-2
        root utimes f -2147483648 -2147483649 -> ok
        root lstat f atime,mtime -> -2147483648,-2147483649
        root utimes f 2147483648 4294967296 -> ok
        root lstat f atime,mtime -> 2147483648,4294967296
        root utimes f 9000000000 0 -> ok
        root lstat f atime,mtime -> 9000000000,0
        root utimes f 100.123456789 200.987654321 -> ok
        root lstat f atime,atime_ns,mtime,mtime_ns -> 100,123456789,200,987654321
        root moves f utimes f 300 omit -> f:ac
        root moves f utimes f omit 400 -> f:mc
        root lstat f atime,mtime,mtime_ns -> 300,400,0
        root moves f utimes f omit omit -> f:-
        root utimes f now 500 -> ok
        root lstat f mtime -> 500
        root moves f utimes f omit now -> f:mc
        alice utimes f 1 1 -> EPERM
        alice utimes f -> EACCES
        root chmod f 0666 -> ok
        alice utimes f -> ok
        alice moves f utimes f 1 1 -> EPERM
        alice moves f utimes f omit 1 -> EPERM
        alice moves f utimes f 1 omit -> EPERM
        alice moves f utimes f now omit -> EPERM
        alice moves f utimes f omit omit -> f:-
        root chown f 60001 60001 -> ok
        root chmod f 0444 -> ok
        alice utimes f 1 1 -> ok
        alice utimes f -> ok
        carol utimes f -> EACCES
        root mkdir d -> ok
        root utimes d 5 6 -> ok
        root lstat d atime,mtime -> 5,6
        root mkfifo p -> ok
        root utimes p 7 8 -> ok
        root lstat p atime,mtime -> 7,8
        root symlink f l -> ok
        root utimes l 9 10 -> ok
        root lstat f atime,mtime -> 9,10
    """,
    "times of reading and writing": """
        root open f creat|wronly -> ok
        root moves f write f text-text -> f:mc
        root moves f read f -> f:a
        root moves f read f -> f:-
        root moves f write f more -> f:mc
        root moves f read f -> f:a
        root truncate f 100000 -> ok
        root hold h f rdonly|noatime -> ok
        root moves f fread h 40960 -> f:-
        root drop h -> ok
        root truncate f 9 -> ok
        root moves f read f -> f:a
        root moves f store f STORE -> f:mc
        root read f -> STOREtext
        root mkdir d -> ok
        root open d/f creat|wronly -> ok
        root moves d ls d -> d:a
        root moves d ls d -> d:-
        root moves d open d/g creat|wronly -> d:mc
        root moves d ls d -> d:a
        root symlink f l -> ok
        root moves f stat f size -> f:-
        root moves f access f r -> f:-
        root moves f setxattr f user.x y -> f:c
        root moves f getxattr f user.x -> f:-
        root moves f removexattr f user.x -> f:c
        root moves f,d rename f d/f2 -> ENOENT
    """,
    "access": """
        root open f creat|wronly 0644 -> ok
        root access f rw -> yes
        root access f x -> no
        root chmod f 0744 -> ok
        root access f x -> yes
        alice access f r -> yes
        alice access f w -> no
        alice access f x -> no
        alice access none f -> no
        root mkdir d 0700 -> ok
        alice access d x -> no
        root access d rwx -> yes
        root chown f 60001 60001 -> ok
        root chmod f 0471 -> ok
        alice access f w -> no
        carol access f rwx -> yes
        bob access f x -> yes
        bob access f r -> no
    """,
    "extended attributes": """
        root open f creat|wronly 0644 -> ok
        root setxattr f user.a 1 -> ok
        root setxattr f user.a 2 1 -> EEXIST
        root setxattr f user.b 2 2 -> ENODATA
        root setxattr f user.a 3 2 -> ok
        root getxattr f user.a -> 3
        root removexattr f user.b -> ENODATA
        alice getxattr f user.a -> 3
        alice setxattr f user.a 4 -> EACCES
        alice removexattr f user.a -> EACCES
        root chmod f 0600 -> ok
        alice getxattr f user.a -> EACCES
        root setxattr f trusted.t 1 -> ok
        alice setxattr f trusted.t 2 -> EPERM
        alice getxattr f trusted.t -> ENODATA
        root setxattr f nonsense.x 1 -> ENOTSUP
        root setxattr f user. 1 -> EINVAL
        root mkfifo p -> ok
        root setxattr p user.x 1 -> EPERM
        root getxattr p user.x -> ENODATA
        root setxattr p trusted.x 1 -> ok
        root mkdir d -> ok
        root setxattr d user.d 1 -> ok
        root chmod d 01777 -> ok
        alice setxattr d user.d 2 -> EPERM
        root setxattr f user.{250} x -> ok
        root setxattr f user.{251} x -> ERANGE
        alice setxattr d security.x 1 -> EPERM
    """,
}


EVERY_TYPE_SCRIPT = """
        root mkdir w -> ok
        root moves w make w/x KIND -> w:mc
        root lstat w/x type,uid,gid -> KIND,0,0
        root make w/x KIND -> EEXIST
        root mkdir w/x -> EEXIST
        root symlink y w/x -> EEXIST
        root mkfifo w/x -> EEXIST
        root open w/x creat|excl|wronly -> EEXIST
        alice unlink w/x -> EACCES
        alice rename w/x w/y -> EACCES
        alice make w/y KIND2 -> EACCES
        root moves w/x lchown w/x 60001 60002 -> w/x:c
        root lstat w/x uid,gid -> 60001,60002
        bob moves w/x lchown w/x -1 -1 -> w/x:-
        bob moves w/x lchown w/x 60002 -1 -> EPERM
        bob moves w/x lchown w/x -1 60002 -> EPERM
        alice lchown w/x 60001 60003 -> EPERM
        alice moves w/x lchown w/x -1 60001 -> w/x:c
        root chmod w 01777 -> ok
        bob rename w/x w/y -> EPERM
        bob mkdir w/empty -> ok
        bob open w/file creat|wronly -> ok
        alice rename w/file w/other -> EPERM
        bob rmdir w/empty -> ok
        root moves w/x>w/y,w rename w/x w/y -> w/y:c w:mc
        root lstat w/x type -> ENOENT
        root lstat w/y type,uid,gid -> KIND,60001,60001
        alice rename w/y w/x -> ok
        bob unlink w/file -> ok
        root ls w -> x
        alice moves w/x>w/y,. rename w/x w/y -> w/y:c .:-
        root mkdir v -> ok
        root rename w/y v/y -> ok
        root lstat v/y type -> KIND
        root same v/y/../y v/y -> SAME
        alice remove v/y -> EACCES
        root moves v remove v/y -> v:mc
        root lstat v/y type -> ENOENT
        root stat v nlink -> 2
        root rmdir v -> ok
        root rmdir w -> ok
"""

EVERY_TYPE_BUT_LINKS_SCRIPT = """
        root make x KIND -> ok
        root moves x chmod x 0644 -> x:c
        root lstat x mode -> 0644
        bob moves x chmod x 0777 -> EPERM
        root chown x 60001 60001 -> ok
        alice moves x chmod x 0640 -> x:c
        root lstat x type,mode,uid,gid -> KIND,0640,60001,60001
        root symlink x l -> ok
        alice chmod l 0600 -> ok
        root stat l mode,type -> 0600,KIND
        root lstat l type -> link
        carol chmod x 0600 -> EPERM
        carol chown x 60003 -1 -> EPERM
        root chown l 60003 60003 -> ok
        carol chown l -1 60001 -> ok
        root lstat x uid,gid -> 60003,60001
        root moves x utimes x 1 2 -> x:amc
        root lstat x atime,mtime -> 1,2
        alice utimes x 3 4 -> EPERM
        alice utimes x -> EACCES
        carol utimes x 5 6 -> ok
        carol utimes x -> ok
        root chmod x 07777 -> ok
        root lstat x mode -> 7777
        root access x w -> yes
        root chmod x 0 -> ok
        carol access x r -> no
        carol access x w -> no
        root setxattr x trusted.t 1 -> ok
        root getxattr x trusted.t -> 1
        root moves x removexattr x trusted.t -> x:c
        root remove x -> ok
"""

ACL_SCRIPT = """
        root open f creat|wronly 0640 -> ok
        root mkdir d 0755 -> ok
        root getxattr f system.posix_acl_access -> ENODATA
        root acl f access u::rw-,u:alice:rw-,g::r--,m::rw-,o::--- -> ok
        root lstat f mode -> 0660
        alice open f rdwr -> ok
        bob open f rdonly -> EACCES
        root chmod f 0640 -> ok
        alice open f rdonly -> ok
        alice open f rdwr -> EACCES
        root acl f access u::rw-,g::r--,g:alice:rw-,m::rw-,o::--- -> ok
        carol open f rdwr -> ok
        bob open f rdonly -> EACCES
        alice acl f access u::rwx,g::rwx,o::rwx -> EPERM
        root acl f access u::rw-,g::r--,o::r-- -> ok
        root lstat f mode -> 0644
        root getxattr f system.posix_acl_access -> ENODATA
        root acl f default u::rw-,g::r--,o::r-- -> EACCES
        root acl d default u::rwx,u:alice:rwx,g::r-x,m::rwx,o::--- -> ok
        root lstat d mode -> 0755
        root umask 077 -> ok
        root mkdir d/e 0777 -> ok
        root lstat d/e mode -> 0770
        alice open d/e/f creat|wronly 0666 -> ok
        bob ls d/e -> EACCES
        root lstat d/e/f mode -> 0660
        root open d/g creat|wronly 0600 -> ok
        alice open d/g rdonly -> EACCES
        root symlink x d/l -> ok
        root lstat d/l mode -> 0777
        root mkfifo d/p 0666 -> ok
        root lstat d/p mode -> 0660
        root acl d default u::rwx,g::---,o::--- -> ok
        root open d/h creat|wronly 0666 -> ok
        root lstat d/h mode -> 0600
"""

READ_ONLY_SCRIPT = """
        root open f rdonly -> ok
        root read f -> text
        root open f wronly -> EROFS
        root open f rdwr -> EROFS
        root open f rdonly|trunc -> EROFS
        root open f creat|rdonly -> ok
        root open new creat|wronly -> EROFS
        root open f creat|excl|wronly -> EEXIST
        root mkdir new -> EROFS
        root mkdir d -> EEXIST
        root rmdir d -> EROFS
        root rmdir none -> EROFS
        root unlink f -> EROFS
        root unlink none -> EROFS
        root rename f g -> EROFS
        root rename none g -> EROFS
        root link f g -> EROFS
        root symlink x new -> EROFS
        root symlink x l -> EEXIST
        root mkfifo new -> EROFS
        root mkfifo f -> EEXIST
        root mknod new char 0600 1 3 -> EROFS
        root bind new -> EROFS
        root chmod f 0600 -> EROFS
        root chown f 1 1 -> EROFS
        root lchown l 1 1 -> EROFS
        root truncate f 0 -> EROFS
        root utimes f 1 1 -> EROFS
        root setxattr f user.x 1 -> EROFS
        root removexattr f user.x -> EROFS
        root access f w -> no
        root access f r -> yes
        root moves f,d read f -> f:- d:-
        root moves d ls d -> d:-
        alice open f wronly -> EROFS
        root stat f mode,size -> 0644,4
        root readlink l -> f
        root hold p p rdwr -> ok
        root fwrite p "into a fifo" -> ok
        root drop p -> ok
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_calls(play: Callable[[str], None], name: str) -> None:
    play(SCRIPTS[name])


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "char", "block", "socket", "link"])
def test_every_type(play: Callable[[str], None], kind: str) -> None:
    # What an ordinary user may try to make: not a device.
    other = {"char": "file", "block": "file"}.get(kind, kind)
    # Only of a directory there is a "..".
    same = "yes" if kind == "dir" else "ENOTDIR" if kind != "link" else "ENOENT"
    script = (
        EVERY_TYPE_SCRIPT if kind == "link" else EVERY_TYPE_SCRIPT + EVERY_TYPE_BUT_LINKS_SCRIPT
    )
    play(script.replace("KIND2", other).replace("KIND", kind).replace("SAME", same))


@pytest.mark.parametrize("how", ["mount", "remount"])
def test_read_only(make_mount: MakeMount, as_root: None, cast: Cast, how: str) -> None:
    mount = make_mount(size="16M")
    (mount.path / "f").write_bytes(b"text")
    (mount.path / "d").mkdir()
    (mount.path / "l").symlink_to("f")
    os.mkfifo(mount.path / "p")
    if how == "mount":
        mount.remount("ro")
    else:
        daxfs("mount", "-o", "remount,ro", mount.image, mount.path)
    cast.play(READ_ONLY_SCRIPT, mount.path)


def test_calls_under_dax_never(make_mount: MakeMount, as_root: None, cast: Cast) -> None:
    """With the write-back cache it is the kernel that keeps sizes and times of files."""
    mount = make_mount("dax=never,suid,dev")
    for name, script in SCRIPTS.items():
        folder = mount.path / name
        folder.mkdir()
        folder.chmod(0o777)
        cast.play(script, folder)


def test_access_control_lists(make_mount: MakeMount, as_root: None, cast: Cast) -> None:
    mount = make_mount("enable_acl", size="16M")
    cast.play(ACL_SCRIPT, mount.path)
