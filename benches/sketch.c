/* The design's two processes and nothing else: what a death costs when another process decides what follows it.
   sketch N WORKER LOGDIR CGROUP: the parent (keeper) reaps, tells of each death, and starts what it is told to; the
   child (agent) answers each death with a start. Each instance has a cgroup and two FIFOs, and a word in a mapped
   file for its pid; the new process runs in the keeper's memory until its exec, as Big Brother's does (x86-64 only). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK = 64 << 10, STACKS = 1024, ORDER = 800 /* bytes: about what an order of Big Brother has */ };

struct instance {
    pid_t pid;
    int cgroup;
    char index[16], out[160], err[160], *args[4];
};

static char *worker, *stacks;
static struct instance *all;
static pid_t *ledger;

static int child(void *of) {
    struct instance *mine = of;
    syscall(SYS_close_range, 7, ~0U, CLOSE_RANGE_UNSHARE);
    setsid();
    ledger[mine - all] = getpid();
    dup2(open(mine->out, O_RDWR | O_CLOEXEC), 1);
    dup2(open(mine->err, O_RDWR | O_CLOEXEC), 2);
    syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, 0);
    execve(worker, mine->args, (char *[]){ 0 });
    _exit(127);
}

/* clone3(2) with a stack of its own: the child goes on in `child`. */
static pid_t go(struct instance *mine) {
    static unsigned turn;
    struct clone_args c = { .flags = CLONE_VM | CLONE_FILES | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
    c.cgroup = mine->cgroup;
    c.stack = (uintptr_t)(stacks + STACK * (turn++ % STACKS));
    c.stack_size = STACK - 64;
    long pid;
    register void *argument asm("r8") = mine;
    register void *function asm("r9") = child;
    asm volatile("syscall\n test %%rax, %%rax\n jnz 1f\n xor %%ebp, %%ebp\n mov %%r8, %%rdi\n call *%%r9\n1:"
                 : "=a"(pid) : "0"((long)SYS_clone3), "D"(&c), "S"(sizeof c), "r"(argument), "r"(function)
                 : "rcx", "r10", "r11", "memory");
    return pid;
}

static int listens(int fd) {
    static int set = -1;
    if (set < 0) set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    return set;
}

static void agent(int link, int n) {
    struct { int index; char order[ORDER]; } message = { 0 };
    struct epoll_event event;
    int set = listens(link);
    for (int i = 0; i < n; i++) {
        message.index = i;
        send(link, &message, sizeof message, 0);
    }
    for (;;) {
        epoll_wait(set, &event, 1, -1);
        if (recv(link, &message, sizeof message, 0) <= 0) _exit(0);
        send(link, &message, sizeof message, 0);
    }
}

static void prepare(int i, char *logs, char *cgroup) {
    struct instance *mine = &all[i];
    char path[300];
    snprintf(mine->index, sizeof mine->index, "%d", i);
    memcpy(mine->args, (char *[]){ worker, logs, mine->index, 0 }, sizeof mine->args);
    snprintf(mine->out, sizeof mine->out, "%s/../%d.out", logs, i);
    snprintf(mine->err, sizeof mine->err, "%s/../%d.err", logs, i);
    snprintf(path, sizeof path, "%s/%d", cgroup, i);
    mkdir(path, 0755);
    mine->cgroup = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    mkfifo(mine->out, 0600);
    mkfifo(mine->err, 0600);
    /* Held open, so that no reader's end breaks them. */
    if (mine->cgroup < 0 || open(mine->out, O_RDWR | O_NONBLOCK | O_CLOEXEC) < 0 ||
        open(mine->err, O_RDWR | O_NONBLOCK | O_CLOEXEC) < 0) exit(3);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int n = atoi(argv[1]), pair[2];
    worker = argv[2];
    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
    if (!fork()) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        agent(pair[1], n);
    }
    close(pair[1]);
    char path[300];
    snprintf(path, sizeof path, "%s/../ledger", argv[3]);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, n * sizeof *ledger)) return 3;
    ledger = mmap(0, n * sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    stacks = mmap(0, STACK * STACKS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    all = calloc(n, sizeof *all);
    for (int i = 0; i < n; i++) prepare(i, argv[3], argv[4]);
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ends, 0);
    int signals = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC), set = listens(signals);
    listens(pair[0]);
    for (;;) {
        struct epoll_event event;
        struct { int index; char order[ORDER]; } message;
        if (epoll_wait(set, &event, 1, -1) < 1) continue;
        if (event.data.fd == pair[0]) {
            if (recv(pair[0], &message, sizeof message, 0) <= 0) return 0;
            all[message.index].pid = go(&all[message.index]);
            continue;
        }
        struct signalfd_siginfo info;
        if (read(signals, &info, sizeof info) < 0) continue;
        for (pid_t dead; (dead = waitpid(-1, 0, WNOHANG)) > 0;)
            for (int i = 0; i < n; i++)
                if (all[i].pid == dead) {
                    message.index = i;
                    send(pair[0], &message, sizeof message.index, 0);
                    break;
                }
    }
}
