/* An Engine that costs next to nothing: the bench's backend, so that what is measured is the proxy.
 *
 *   free_engine SOCKET
 *
 * One thread, epoll, a unix socket, keep-alive. It answers
 *   GET .../get?...names=N    N MiB, chunked (32 KiB chunks)
 *   POST .../load             reads the body (length or chunked), then a small answer
 *   POST .../exec/ID/start or .../attach?...    101, or 200 where no Upgrade was asked for, then an echo until the
 *                             client half-closes
 *   GET .../containers/ID/json the inspection of such a container, for an ID of 64 digits
 *   anything else             200 and 306 bytes of JSON, after reading the body
 * It reads heads without mercy or care: only proxies that were given well-formed requests stand before it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HEAD_MAX = 65536, CHUNK = 32768 };
enum state { HEAD, BODY_LENGTH, BODY_CHUNKED, SEND, ECHO };

struct conn {
    int fd;
    enum state state;
    char *in;                  /* bytes read and not yet used, or not yet echoed */
    size_t used, room;
    unsigned long long left;   /* of a body or chunk */
    int chunk_phase;           /* 0 size line, 1 data, 2 CRLF after data, 3 trailer lines */
    char after;                /* what follows the body: 's' small answer, 'i' inspection, 'x' or 'r' (no upgrade) echo, 'd' download */
    char id[65];               /* of the container that is inspected */
    unsigned long long blocks; /* chunks of a download still to send */
    size_t block_sent;         /* bytes of the current one that are sent */
    int ended;                 /* the client has half-closed */
    unsigned armed;
};

static int poller;
static char small_answer[1024];
static size_t small_length;
static char block[CHUNK + 16];
static size_t block_length;
static const char CHUNKED_HEAD[] = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/x-tar\r\n"
                                   "Transfer-Encoding: chunked\r\n\r\n";
static const char HIJACK_HEAD[] = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
                                  "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
static const char RAW_HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n";

static void prepare(void) {
    const char *body = "[{\"Id\":\"8dfafdbc3a40b5b1f1c0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6\",\"Names\":[\"/web\"],"
                       "\"Image\":\"img:latest\",\"ImageID\":\"sha256:bf72c4a40ce492a7f273c362294e43d52951955efc9c2b1f\","
                       "\"Command\":\"sleep 1000\",\"Created\":1700000000,\"Ports\":[],\"Labels\":{},\"State\":\"running\","
                       "\"Status\":\"Up 3 hours\"}]\n";
    small_length = (size_t)snprintf(small_answer, sizeof small_answer,
                                    "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n"
                                    "Docker-Experimental: false\r\nOstype: linux\r\nServer: Docker/20.10.24 (linux)\r\n"
                                    "Date: Sun, 22 Nov 2026 00:00:00 GMT\r\nContent-Length: %zu\r\n\r\n%s",
                                    strlen(body), body);
    block_length = (size_t)sprintf(block, "%x\r\n", CHUNK);
    memset(block + block_length, 'x', CHUNK);
    block_length += CHUNK;
    memcpy(block + block_length, "\r\n", 2);
    block_length += 2;
}

static void drop(struct conn *c) {
    close(c->fd);
    free(c->in);
    free(c);
}

static void arm(struct conn *c, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (events != c->armed && epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) == 0)
        c->armed = events;
}

static int reserve(struct conn *c, size_t more) {
    if (c->used + more <= c->room)
        return 0;
    size_t room = c->room ? c->room : 4096;
    while (room < c->used + more)
        room *= 2;
    char *grown = realloc(c->in, room);
    if (!grown)
        return -1;
    c->in = grown;
    c->room = room;
    return 0;
}

static void consume(struct conn *c, size_t count) {
    c->used -= count;
    memmove(c->in, c->in + count, c->used);
}

/* Small answers fit into an empty socket buffer; a client that pipelines more than that is dropped. */
static int say(struct conn *c, const char *text, size_t length) {
    return send(c->fd, text, length, MSG_NOSIGNAL) == (ssize_t)length ? 0 : -1;
}

static const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = memchr(head, '\n', (size_t)(end - head)); line && line + 1 < end;
         line = memchr(line + 1, '\n', (size_t)(end - line - 1)))
        if (strncasecmp(line + 1, name, length) == 0 && line[1 + length] == ':')
            return line + 2 + length;
    return NULL;
}

static int inspection(struct conn *c) {
    static const char rest[] = "\"Created\":\"2026-11-22T00:00:00Z\",\"Path\":\"sleep\",\"Args\":[\"1000\"],"
                               "\"State\":{\"Status\":\"running\",\"Running\":true},\"Config\":{\"Image\":\"img:latest\"}}\n";
    char body[512], answer[1024];
    int size = snprintf(body, sizeof body, "{\"Id\":\"%s\",\"Name\":\"/web-%.12s\",%s", c->id, c->id, rest);
    int length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n"
                          "Docker-Experimental: false\r\nOstype: linux\r\nServer: Docker/20.10.24 (linux)\r\n"
                          "Date: Sun, 22 Nov 2026 00:00:00 GMT\r\nContent-Length: %d\r\n\r\n%s", size, body);
    return say(c, answer, (size_t)length);
}

static int begin_answer(struct conn *c) {
    if (c->after == 'i') {
        c->state = HEAD;
        return inspection(c);
    }
    if (c->after == 's') {
        c->state = HEAD;
        return say(c, small_answer, small_length);
    }
    if (c->after == 'x' || c->after == 'r') {
        c->used = 0; /* the Engine loses what came with the request */
        c->state = ECHO;
        return c->after == 'x' ? say(c, HIJACK_HEAD, sizeof HIJACK_HEAD - 1) : say(c, RAW_HEAD, sizeof RAW_HEAD - 1);
    }
    c->state = SEND;
    c->block_sent = 0;
    return say(c, CHUNKED_HEAD, sizeof CHUNKED_HEAD - 1);
}

/* Read one head if it is there: 1 when it was, 0 when not, -1 to drop. */
static int take_head(struct conn *c) {
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end)
        return c->used > HEAD_MAX ? -1 : 0;
    char *line_end = memchr(c->in, '\r', c->used);
    *line_end = 0;
    c->after = 's';
    if (strncmp(c->in, "GET ", 4) == 0 && strstr(c->in, "/get?")) {
        const char *names = strstr(c->in, "names=");
        c->after = 'd';
        c->blocks = (names ? strtoull(names + 6, NULL, 10) : 1) * (1048576 / CHUNK);
    } else if (strstr(c->in, "/attach?") || (strstr(c->in, "/exec/") && strstr(c->in, "/start "))) {
        c->after = 'x';
    } else {
        const char *id = strstr(c->in, "/containers/");
        if (id && strspn(id + 12, "0123456789abcdef") == 64 && strncmp(id + 76, "/json ", 6) == 0) {
            memcpy(c->id, id + 12, 64);
            c->after = 'i';
        }
    }
    *line_end = '\r';
    const char *length = header(c->in, end + 2, "content-length");
    const char *encoding = header(c->in, end + 2, "transfer-encoding");
    if (c->after == 'x' && !header(c->in, end + 2, "upgrade"))
        c->after = 'r';
    c->left = length ? strtoull(length, NULL, 10) : 0;
    c->chunk_phase = 0;
    c->state = encoding ? BODY_CHUNKED : BODY_LENGTH;
    consume(c, (size_t)(end + 4 - c->in));
    return 1;
}

/* Use up a body: 1 at its end, 0 when more is needed, -1 to drop. */
static int take_body(struct conn *c) {
    while (1) {
        if (c->state == BODY_LENGTH || c->chunk_phase == 1) {
            size_t count = c->left < c->used ? (size_t)c->left : c->used;
            consume(c, count);
            c->left -= count;
            if (c->left)
                return 0;
            if (c->state == BODY_LENGTH)
                return 1;
            c->chunk_phase = 2;
        }
        char *end = c->used ? memmem(c->in, c->used, "\r\n", 2) : NULL;
        if (!end)
            return c->used > HEAD_MAX ? -1 : 0;
        int empty = end == c->in;
        if (c->chunk_phase == 0) {
            c->left = strtoull(c->in, NULL, 16);
            c->chunk_phase = c->left ? 1 : 3;
        } else if (c->chunk_phase == 2) {
            c->chunk_phase = 0;
        }
        int last = c->chunk_phase == 3 && empty;
        consume(c, (size_t)(end + 2 - c->in));
        if (last)
            return 1;
    }
}

/* Send what a download or an echo still owes: 0 done, 1 the socket is full, -1 to drop. */
static int push(struct conn *c) {
    while (c->state == SEND) {
        const char *data = c->blocks ? block : "0\r\n\r\n";
        size_t length = c->blocks ? block_length : 5;
        ssize_t sent = send(c->fd, data + c->block_sent, length - c->block_sent, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? 1 : -1;
        c->block_sent += (size_t)sent;
        if (c->block_sent < length)
            continue;
        c->block_sent = 0;
        if (c->blocks == 0)
            c->state = HEAD;
        else
            c->blocks--;
    }
    while (c->state == ECHO && c->used) {
        ssize_t sent = send(c->fd, c->in, c->used, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? 1 : -1;
        consume(c, (size_t)sent);
    }
    return c->state == ECHO && c->ended ? -1 : 0;
}

static int advance(struct conn *c) {
    while (1) {
        int step = 0;
        if (c->state == HEAD)
            step = take_head(c);
        else if (c->state == BODY_LENGTH || c->state == BODY_CHUNKED)
            step = take_body(c) == 1 ? (begin_answer(c) < 0 ? -1 : 1) : 0;
        else {
            int full = push(c);
            if (full < 0)
                return -1;
            arm(c, full ? EPOLLOUT : EPOLLIN);
            step = !full && c->state == HEAD;
        }
        if (step <= 0)
            return step;
    }
}

static int readable(struct conn *c) {
    if (reserve(c, 65536) < 0)
        return -1;
    ssize_t got = recv(c->fd, c->in + c->used, c->room - c->used, 0);
    if (got < 0)
        return errno == EAGAIN ? 0 : -1;
    if (got == 0) {
        if (c->state != ECHO)
            return -1;
        c->ended = 1;
    }
    c->used += (size_t)got;
    return advance(c);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: free_engine SOCKET\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prepare();
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "free_engine: the path is too long: %s\n", argv[1]);
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    unlink(argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1024) < 0) {
        perror(argv[1]);
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[128];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    while (1) {
        int count = epoll_wait(poller, events, 128, -1);
        for (int i = 0; i < count; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    c = calloc(1, sizeof *c);
                    c->fd = fd;
                    c->armed = EPOLLIN;
                    struct epoll_event added = {.events = EPOLLIN, .data.ptr = c};
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &added);
                }
                continue;
            }
            int result = c->armed == EPOLLOUT ? advance(c) : readable(c);
            if (result < 0)
                drop(c);
        }
    }
}
