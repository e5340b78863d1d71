/* The floor: the least a supervisor could do.  floor N WORKER LOGDIR: spawn N, wait, respawn. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static char *worker, *logs;

static pid_t go(int i) {
    char index[16];
    snprintf(index, sizeof index, "%d", i);
    char *args[] = { worker, logs, index, 0 };
    pid_t pid = vfork();
    if (!pid) { execv(worker, args); _exit(127); }
    return pid;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int n = atoi(argv[1]);
    worker = argv[2];
    logs = argv[3];
    pid_t *pids = calloc(n, sizeof *pids);
    for (int i = 0; i < n; i++) pids[i] = go(i);
    for (;;) {
        pid_t dead = wait(0);
        if (dead < 0) pause();
        for (int i = 0; i < n; i++)
            if (pids[i] == dead) { pids[i] = go(i); break; }
    }
}
