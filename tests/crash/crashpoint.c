/* Stops a process, or fails one of its calls, at an exact place in its file-system history.
 *
 * Preloaded, this library counts the calls that change anything under one folder. Armed by
 * crash_arm(folder, k, fault), it acts just before the k-th of them: fault 0 only counts,
 * -1 kills the process (SIGKILL, as the machine would), a positive number makes that one call
 * fail with this errno, and below -1 every call from the k-th on fails with errno -fault.
 * crash_log(path) also writes what each call did, for replaying a power loss. After
 * crash_victim(pid) it is that process which is killed, and this one goes on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long target, fault;
static long count;
static int victim;
static int log_handle = -1, data_handle = -1;

void crash_arm(const char *path, long k, long what) {
  folder_length = 0;
  count = 0;
  target = k;
  fault = what;
  strncpy(folder, path, sizeof folder - 1);
  folder_length = strlen(folder);
}

void crash_victim(int pid) { victim = pid; }

long crash_count(void) { return __atomic_load_n(&count, __ATOMIC_SEQ_CST); }

int crash_log(const char *log, const char *data) {
  log_handle = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
  data_handle = (int)syscall(SYS_openat, AT_FDCWD, data, O_WRONLY | O_CREAT | O_APPEND, 0644);
  return log_handle >= 0 && data_handle >= 0;
}

/* Write the absolute path of `path`, seen from `dirfd`, into `out`; 0 when it has none. */
static int resolve(int dirfd, const char *path, char *out) {
  char base[64];
  ssize_t length;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
    return 1;
  }
  if (dirfd == AT_FDCWD)
    snprintf(base, sizeof base, "/proc/self/cwd");
  else
    snprintf(base, sizeof base, "/proc/self/fd/%d", dirfd);
  length = readlink(base, out, PATH_MAX - 1);
  if (length <= 0) return 0;
  out[length] = 0;
  if (path[0]) snprintf(out + length, PATH_MAX - (size_t)length, "/%s", path);
  return 1;
}

static int watched(const char *path) {
  return folder_length && strncmp(path, folder, folder_length) == 0 &&
         (path[folder_length] == '/' || path[folder_length] == 0);
}

/* Count one call; return 1 when it must fail with errno. */
static int strike(void) {
  long mine = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (fault == 0 || mine < target || (mine > target && fault >= -1)) return 0;
  if (fault == -1) {
    syscall(SYS_kill, victim ? victim : getpid(), SIGKILL);
    if (victim) return 0;
    for (;;) pause();
  }
  errno = (int)(fault > 0 ? fault : -fault);
  return 1;
}

static void note(const char *verb, const char *one, const char *two, long a, long b) {
  char line[3 * PATH_MAX];
  int length;
  if (log_handle < 0) return;
  length = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%ld\n", verb, one, two, a, b);
  syscall(SYS_write, log_handle, line, (size_t)length);
}

/* Whether a call on `path` (from `dirfd`) is watched; then it is counted and may have to fail. */
static int hit(int dirfd, const char *path, char *full, int *fails) {
  *fails = 0;
  if (!folder_length || !resolve(dirfd, path, full) || !watched(full)) return 0;
  *fails = strike();
  return 1;
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static void note_write(const char *full, int fd, const void *data, ssize_t done, long offset) {
  if (log_handle < 0 || done <= 0) return;
  syscall(SYS_write, data_handle, data, (size_t)done);
  if (offset < 0) offset = (long)lseek(fd, 0, SEEK_CUR) - (long)done;
  note("write", full, "-", offset, (long)done);
}

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  char full[PATH_MAX];
  int fails, mine = hit(fd, "", full, &fails);
  if (fails) return -1;
  ssize_t done = real(fd, data, size);
  if (mine) note_write(full, fd, data, done, -1);
  return done;
}

static ssize_t write_at(int fd, const void *data, size_t size, off64_t offset) {
  REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
  char full[PATH_MAX];
  int fails, mine = hit(fd, "", full, &fails);
  if (fails) return -1;
  ssize_t done = real(fd, data, size, offset);
  if (mine) note_write(full, fd, data, done, (long)offset);
  return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  return write_at(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  return write_at(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  char full[PATH_MAX];
  int fails;
  hit(fd, "", full, &fails);
  return fails ? -1 : real(fd, parts, number);
}

static int open_at(int dirfd, const char *path, int flags, mode_t mode) {
  REAL(int, "openat64", int, const char *, int, ...);
  char full[PATH_MAX];
  int fails = 0, mine = 0;
  if (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) mine = hit(dirfd, path, full, &fails);
  if (fails) return -1;
  int fd = real(dirfd, path, flags, mode);
  if (mine && fd >= 0) note("open", full, "-", flags & O_TRUNC ? 1 : 0, 0);
  return fd;
}

#define MODE \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode); }

static int rename_at(int from, const char *old, int to, const char *new) {
  REAL(int, "renameat", int, const char *, int, const char *);
  char one[PATH_MAX], two[PATH_MAX];
  int fails, mine = hit(from, old, one, &fails);
  if (fails) return -1;
  int done = real(from, old, to, new);
  if (mine && done == 0 && resolve(to, new, two)) note("rename", one, two, 0, 0);
  return done;
}

int rename(const char *old, const char *new) { return rename_at(AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int from, const char *old, int to, const char *new) {
  return rename_at(from, old, to, new);
}

static int remove_at(int dirfd, const char *path, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  char full[PATH_MAX];
  int fails, mine = hit(dirfd, path, full, &fails);
  if (fails) return -1;
  int done = real(dirfd, path, flags);
  if (mine && done == 0) note("remove", full, "-", 0, 0);
  return done;
}

int unlink(const char *path) { return remove_at(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return remove_at(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dirfd, const char *path, int flags) { return remove_at(dirfd, path, flags); }

static int mkdir_at(int dirfd, const char *path, mode_t mode) {
  REAL(int, "mkdirat", int, const char *, mode_t);
  char full[PATH_MAX];
  int fails, mine = hit(dirfd, path, full, &fails);
  if (fails) return -1;
  int done = real(dirfd, path, mode);
  if (mine && done == 0) note("mkdir", full, "-", 0, 0);
  return done;
}

int mkdir(const char *path, mode_t mode) { return mkdir_at(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char *path, mode_t mode) { return mkdir_at(dirfd, path, mode); }

static int cut(int fd, off64_t size) {
  REAL(int, "ftruncate64", int, off64_t);
  char full[PATH_MAX];
  int fails, mine = hit(fd, "", full, &fails);
  if (fails) return -1;
  int done = real(fd, size);
  if (mine && done == 0) note("truncate", full, "-", (long)size, 0);
  return done;
}

int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(fd, size); }

static int cut_path(const char *path, off64_t size) {
  REAL(int, "truncate64", const char *, off64_t);
  char full[PATH_MAX];
  int fails, mine = hit(AT_FDCWD, path, full, &fails);
  if (fails) return -1;
  int done = real(path, size);
  if (mine && done == 0) note("truncate", full, "-", (long)size, 0);
  return done;
}

int truncate(const char *path, off_t size) { return cut_path(path, size); }
int truncate64(const char *path, off64_t size) { return cut_path(path, size); }

static int sync_it(int fd, const char *name) {
  REAL(int, name, int);
  char full[PATH_MAX];
  int fails, mine = hit(fd, "", full, &fails);
  if (fails) return -1;
  int done = real(fd);
  if (mine && done == 0) note("sync", full, "-", 0, 0);
  return done;
}

int fsync(int fd) { return sync_it(fd, "fsync"); }
int fdatasync(int fd) { return sync_it(fd, "fsync"); }
