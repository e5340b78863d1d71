/* The supervised process of the measurements.

     worker [-xs] [-n | -w | -q PORT] [-m MS] [-b BASE] LOGDIR INDEX

   The first act of main() is to read CLOCK_MONOTONIC; "start <ns> <pid>" is then appended to LOGDIR/INDEX.
     -n   beat on $BIGBROTHER_SOCKET, without blocking, as protocol.md asks
     -w   beat on $NOTIFY_SOCKET, blocking, as most programs do
     -q   answer Teeworlds 0.6 server info on this UDP port
     -m   the period of the beats (default 1000)
     -b   is added to INDEX
     -s   with -n: tell another number of players with each beat
     -x   hold a lock for this index; "double" is written when another process holds it
   With -n and -w the time of each beat is written to LOGDIR/../beat/INDEX before it is sent, and with -q at
   the same period.  SIGUSR1: hang, that is, fall silent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t hung;
static void on_usr1(int s) { (void)s; hung = 1; }

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int unix_socket(const char *path, int type) {
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    if (!path || !path[0]) return -1;
    strncpy(a.sun_path, path, sizeof a.sun_path - 1);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a)) { close(fd); fd = -1; }
    return fd;
}

/* ---- native */
static int rpc = -1;
static void beat_native(int status) {
    static const char beat[] = "{\"jsonrpc\":\"2.0\",\"method\":\"heartbeat\"}\n";
    static const char hello[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\",\"params\":"
                                "{\"client\":\"bench\",\"state\":\"ready\"}}\n";
    char answer[4096];
    ssize_t got = 0;
    while (rpc >= 0 && (got = recv(rpc, answer, sizeof answer, MSG_DONTWAIT)) > 0) {}
    if (rpc >= 0 && (got == 0 || (errno != EAGAIN && errno != EINTR))) { close(rpc); rpc = -1; }
    if (rpc < 0) {
        rpc = unix_socket(getenv("BIGBROTHER_SOCKET"), SOCK_STREAM | SOCK_NONBLOCK);
        if (rpc >= 0) send(rpc, hello, sizeof hello - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    if (rpc >= 0) send(rpc, beat, sizeof beat - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (rpc >= 0 && status) {
        static int players;
        int length = snprintf(answer, sizeof answer, "{\"jsonrpc\":\"2.0\",\"method\":\"status\",\"params\":"
                              "{\"players\":%d,\"capacity\":64}}\n", players++ % 64);
        send(rpc, answer, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

/* ---- notify */
static int notify = -1;
static void tell(const char *message) {
    if (notify < 0) notify = unix_socket(getenv("NOTIFY_SOCKET"), SOCK_DGRAM);
    if (notify >= 0 && send(notify, message, strlen(message), MSG_NOSIGNAL) < 0) { close(notify); notify = -1; }
}

/* ---- query */
static void answer_query(int fd) {
    unsigned char q[64], header[6];
    char text[256];
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t got = recvfrom(fd, q, sizeof q, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
    if (got < 15 || memcmp(q + 10, "gie3", 4)) return;
    memset(header, 0xff, sizeof header);
    int extended = q[0] == 'x', length = 0;
    unsigned token = extended ? (unsigned)q[2] << 16 | (unsigned)q[3] << 8 | q[14] : q[14];
    memcpy(text, header, 6);
    memset(text + 6, 0xff, 4);
    memcpy(text + 10, extended ? "iext" : "inf3", 4);
    length = 14 + sprintf(text + 14, "%u%cbench%cbench%cmap%c", token, 0, 0, 0, 0);
    if (extended) length += sprintf(text + length, "0%c0%c", 0, 0);
    length += sprintf(text + length, "DM%c0%c0%c16%c0%c16%c", 0, 0, 0, 0, 0, 0);
    sendto(fd, text, length, MSG_DONTWAIT, (struct sockaddr *)&from, size);
}

static void append(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) _exit(5);
    close(fd);
}

int main(int argc, char **argv) {
    long long t0 = now();
    int option, mode = 0, port = 0, lock = 0, status = 0, base = 0;
    long ms = 1000;
    char path[4200], text[128];
    while ((option = getopt(argc, argv, "+xsnwq:m:b:")) != -1) {
        if (option == 'x') lock = 1;
        else if (option == 's') status = 1;
        else if (option == 'b') base = atoi(optarg);
        else if (option == 'm') ms = atol(optarg);
        else if (option == '?') return 2;
        else mode = option, port = option == 'q' ? atoi(optarg) : 0;
    }
    if (argc - optind != 2) return 2;
    const char *logs = argv[optind];
    char index[16];
    snprintf(index, sizeof index, "%d", base + atoi(argv[optind + 1]));
    snprintf(text, sizeof text, "sb%s", index);
    prctl(PR_SET_NAME, text);
    snprintf(path, sizeof path, "%s/%s", logs, index);
    snprintf(text, sizeof text, "start %lld %d\n", t0, (int)getpid());
    append(path, text);
    if (lock) {
        char name[4200];
        snprintf(name, sizeof name, "%s/../lock/%s", logs, index);
        int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0) return 6;
        if (flock(fd, LOCK_EX | LOCK_NB)) append(path, "double\n");
    }
    if (!mode) for (;;) pause();

    struct sigaction usr1 = { .sa_handler = on_usr1 };
    sigaction(SIGUSR1, &usr1, 0);
    struct pollfd udp = { .fd = -1, .events = POLLIN };
    if (mode == 'q') {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        udp.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (bind(udp.fd, (struct sockaddr *)&a, sizeof a)) return 7;
    }
    snprintf(path, sizeof path, "%s/../beat/%s", logs, index);
    int beats = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (beats < 0) return 8;
    if (mode == 'w') tell("READY=1");
    for (long long next = now();;) {
        if (hung) for (;;) pause();
        long long wait = next - now();
        if (wait <= 0) {
            int length = snprintf(text, sizeof text, "%020lld\n", now());
            if (pwrite(beats, text, length, 0) != length) return 9;
            if (mode == 'n') beat_native(status);
            if (mode == 'w') tell("WATCHDOG=1");
            next += ms * 1000000LL;
            if (next < now()) next = now();
            continue;
        }
        struct timespec left = { wait / 1000000000LL, wait % 1000000000LL };
        if (ppoll(&udp, 1, &left, 0) > 0 && !hung) answer_query(udp.fd);
    }
}
