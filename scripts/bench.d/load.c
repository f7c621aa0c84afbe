/* The load of scripts/bench: one row's work in one directory, timed here so that no interpreter's cost is in it.
   usage: load ROW DIR COUNT [SIZE]; prints nanoseconds for an operation. Fails loudly on the first error. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 20];
static const char *folder;

static void die(const char *what) { fprintf(stderr, "load: %s in %s: %s\n", what, folder, strerror(errno)); exit(1); }
#define TRY(call) do { if ((long)(call) < 0) die(#call); } while (0)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static const char *name(char kind, long number) {
    static char text[64];
    snprintf(text, sizeof text, "%c%06ld", kind, number);
    return text;
}

static void create_one(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
    TRY(fd);
    TRY(write(fd, block, 4096));
    TRY(close(fd));
}

static void read_one(const char *path) {
    int fd = open(path, O_RDONLY);
    TRY(fd);
    if (read(fd, block, 8192) != 4096) die("a short read");
    TRY(close(fd));
}

static void stat_one(const char *path) { struct stat st; TRY(fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW)); }
static void make_one(const char *path) { TRY(mkdir(path, 0755)); }
static void unlink_one(const char *path) { TRY(unlink(path)); }
static void missing_one(const char *path) { struct stat st; if (!stat(path, &st) || errno != ENOENT) die("it is there"); }

static void each(void (*one)(const char *), char kind, long count) {
    for (long i = 0; i < count; i++) one(name(kind, i));
}

static void rename_all(long count) {
    char other[64];
    for (long i = 0; i < count; i++) {
        strcpy(other, name('m', i));
        TRY(rename(name('f', i), other));
    }
}

static void list(long count) {
    DIR *dir = opendir(".");
    struct dirent *entry;
    struct stat st;
    long found = 0;
    if (!dir) die("opendir");
    while ((entry = readdir(dir))) {
        TRY(fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW));
        found += entry->d_name[0] == 'f';
    }
    closedir(dir);
    if (found != count) die("entries are missing");
}

static void sequential(int flags, long count) {
    int fd = open("big", flags, 0644);
    TRY(fd);
    for (long i = 0; i < count; i++) {
        ssize_t done = flags & O_WRONLY ? write(fd, block, sizeof block) : read(fd, block, sizeof block);
        if (done != sizeof block) die("a short transfer");
    }
    TRY(close(fd));
}

static void random_reads(long count, long blocks) {
    int fd = open("big", O_RDONLY);
    TRY(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    srandom(1);
    for (long i = 0; i < count; i++)
        if (pread(fd, block, 4096, random() % blocks * 4096L) != 4096) die("a short read");
    TRY(close(fd));
}

/* What a compiler's job does, by four at once: make a file, look at it, read it, rename it over, remove it. */
static void four(long count) {
    for (int child = 0; child < 4; child++) {
        pid_t pid = fork();
        TRY(pid);
        if (pid) continue;
        char path[64], other[64];
        snprintf(path, sizeof path, "job%d", child);
        TRY(mkdir(path, 0755));
        TRY(chdir(path));
        for (long i = 0; i < count; i++) {
            strcpy(other, name('m', i));
            create_one(name('f', i));
            stat_one(name('f', i));
            read_one(name('f', i));
            TRY(rename(name('f', i), other));
            TRY(unlink(other));
        }
        _exit(0);
    }
    for (int child = 0, status; child < 4; child++) {
        TRY(wait(&status));
        if (status) exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    const char *row = argv[1];
    long count = atol(argv[3]);
    folder = argv[2];
    memset(block, 'z', sizeof block);
    TRY(chdir(folder));
    double start = now();
    if (!strcmp(row, "create")) each(create_one, 'f', count);
    else if (!strcmp(row, "stat")) each(stat_one, 'f', count);
    else if (!strcmp(row, "missing")) each(missing_one, 'x', count);
    else if (!strcmp(row, "read")) each(read_one, 'f', count);
    else if (!strcmp(row, "list")) list(count);
    else if (!strcmp(row, "unlink")) each(unlink_one, 'f', count);
    else if (!strcmp(row, "rename")) rename_all(count);
    else if (!strcmp(row, "mkdir")) each(make_one, 'd', count);
    else if (!strcmp(row, "write-big")) sequential(O_WRONLY | O_CREAT | O_TRUNC, count);
    else if (!strcmp(row, "read-big")) sequential(O_RDONLY, count);
    else if (!strcmp(row, "random")) random_reads(count, atol(argv[4]));
    else if (!strcmp(row, "four")) four(count);
    else return 2;
    printf("%.0f\n", (now() - start) / count);
    return 0;
}
