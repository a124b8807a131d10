/* The bench's load: HTTP/1.1 over mutual TLS 1.3 from one thread, closed loop.
 *
 *   load_client MODE port=N ca=FILE cert=FILE key=FILE [name=value...]
 *
 * keep: connections=N are opened first, then each sends target=T (or the next one of the file targets=F), reads the
 *       whole answer, sends again, for seconds=S. method=M, GET by default.
 * new:  each of the N slots opens a connection (full handshake, no resumption), asks once, closes, again.
 *       The first tenth of S warms up and is not counted. Latency is from the first byte written (new: from connect)
 *       to the last byte read. JSON: requests, seconds, rps, p50_us, p99_us, cpu, answered (warm-up included), errors,
 *       error.
 * idle: N connections are opened, eight at a time, and asked once; a line of JSON says so; they stay until standard
 *       input ends, and a second line says how many of them were still there.
 * get:  the whole answer to target=T, once; put: bytes=N to target=T, chunked; echo: bytes=N on a hijacked stream, there
 *       and back at the same time; rtt: 64 bytes there and back, again and again, for seconds=S. In load_stream.c.
 *
 * cpu is the CPU time in seconds of process pid=P meanwhile.
 */
#define _GNU_SOURCE
#include "load.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { INPUT = 65536, MOST_SAMPLES = 8000000, MOST_ERRORS = 100, MOST_TARGETS = 10000, AT_A_TIME = 8 };

struct conn {
    int fd;
    SSL *ssl;
    int shaken;      /* the handshake is done */
    int asked;       /* a request is out */
    size_t used;
    long expected;   /* bytes of the whole answer, 0: head not read yet, -1: chunked */
    double since;
    char *in;
};

struct text {
    char *data;
    int length;
};

struct options options = {.host = "127.0.0.1", .method = "GET", .connections = 1, .seconds = 1};
SSL_CTX *context;
char last_error[160];
static struct text requests[MOST_TARGETS];
static int request_count, next_request, poller, fresh, counting;
static unsigned *samples;
static size_t sample_count;
static long errors, answered;

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double cpu_of_proxy(void) {
    clockid_t clock;
    struct timespec t;
    if (!options.pid || clock_getcpuclockid(options.pid, &clock) || clock_gettime(clock, &t))
        return 0;
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void note_error(const char *what) {
    unsigned long code = ERR_get_error();
    snprintf(last_error, sizeof last_error, "%s%s%s", what, code ? ": " : "", code ? ERR_reason_error_string(code) : "");
    for (char *p = last_error; *p; p++)
        if (*p == '"' || *p == '\\' || *p < ' ')
            *p = ' ';
    ERR_clear_error();
}

static void fail(const char *what) {
    note_error(what);
    errors++;
}

static int by_value(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return x < y ? -1 : x > y;
}

unsigned percentile(unsigned *values, size_t count, size_t hundredths) {
    qsort(values, count, sizeof *values, by_value);
    return count ? values[count * hundredths / 100] : 0;
}

int open_socket(int nonblocking) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)options.port)};
    inet_pton(AF_INET, options.host, &address.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0), one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd < 0 || (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)) {
        note_error(fd < 0 ? "no descriptor is free" : "connect");
        close(fd);
        return -1;
    }
    return fd;
}

static int open_connection(struct conn *c) {
    c->since = now();
    c->fd = open_socket(1);
    if (c->fd < 0) {
        errors++;
        return -1;
    }
    if (!c->in && !(c->in = malloc(INPUT)))
        return -1;
    c->ssl = SSL_new(context);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_connect_state(c->ssl);
    c->shaken = c->asked = 0;
    c->used = 0;
    c->expected = 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    return 0;
}

static void close_connection(struct conn *c) {
    SSL_shutdown(c->ssl);
    SSL_free(c->ssl);
    close(c->fd);
    c->ssl = NULL;
}

static int ask(struct conn *c) {
    if (!fresh)
        c->since = now();
    c->used = 0;
    c->expected = 0;
    c->asked = 1;
    struct text *request = &requests[next_request];
    next_request = next_request + 1 < request_count ? next_request + 1 : 0;
    return SSL_write(c->ssl, request->data, request->length) == request->length ? 0 : -1;
}

static void measure(struct conn *c) {
    while (c->expected == 0 && c->used > 4) {
        char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
        if (!end)
            return;
        if (strncmp(c->in, "HTTP/1.1 2", 10) != 0) {
            c->in[c->used < 60 ? c->used : 60] = 0;
            fail(c->in);
        }
        c->expected = strncmp(c->in + 9, "204", 3) == 0 ? end + 4 - c->in : -1;
        for (char *line = c->in; line < end; line = (char *)memchr(line, '\n', (size_t)(end + 2 - line)) + 1)
            if (strncasecmp(line, "content-length:", 15) == 0)
                c->expected = end + 4 - c->in + atol(line + 15);
    }
}

static int complete(struct conn *c) {
    if (c->expected > 0)
        return (long)c->used >= c->expected;
    return c->expected < 0 && c->used >= 5 && memcmp(c->in + c->used - 5, "0\r\n\r\n", 5) == 0;
}

/* Go on with a connection: 0 waiting, 1 an answer is complete, -1 lost. */
static int progress(struct conn *c) {
    if (!c->shaken) {
        int result = SSL_do_handshake(c->ssl);
        if (result != 1) {
            int reason = SSL_get_error(c->ssl, result);
            return reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ? 0 : -1;
        }
        c->shaken = 1;
        if (fresh && ask(c) < 0)
            return -1;
    }
    while (c->asked) {
        int got = SSL_read(c->ssl, c->in + c->used, (int)(INPUT - c->used));
        if (got <= 0) {
            int reason = SSL_get_error(c->ssl, got);
            return reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ? 0 : -1;
        }
        c->used += (size_t)got;
        measure(c);
        if (complete(c)) {
            c->asked = 0;
            return 1;
        }
        if (c->used >= INPUT)
            return -1;
    }
    return 0;
}

static void finished(struct conn *c) {
    answered++;
    if (counting && sample_count < MOST_SAMPLES)
        samples[sample_count++] = (unsigned)((now() - c->since) * 1e6);
}

static int run_requests(struct conn *conns, int count) {
    double seconds = options.seconds;
    samples = malloc(sizeof *samples * MOST_SAMPLES);
    for (int i = 0; i < count; i++)
        if (open_connection(&conns[i]) < 0)
            break;
    struct epoll_event events[256];
    int shaken = 0, lost = 0;
    double begin = now(), warm = 0, stop = 0, from = 0, cpu = 0;
    while (!errors || fresh || stop) {
        double t = now();
        if (!stop && (fresh || shaken == count)) { /* the clock starts when all are connected */
            warm = t + seconds * 0.1;
            stop = t + seconds;
            for (int i = 0; !fresh && i < count; i++)
                if (ask(&conns[i]) < 0)
                    fail("the request cannot be sent");
        }
        if (stop && !counting && t >= warm) {
            counting = 1;
            from = t;
            cpu = cpu_of_proxy();
        }
        /* At least one answer: a slow moment is not an error. */
        if ((stop && t >= stop && (sample_count || t >= stop + 10)) || errors > MOST_ERRORS || lost >= count || (!stop && t - begin > 30))
            break;
        int ready = epoll_wait(poller, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c->ssl)
                continue;
            int was = c->shaken, result;
            while ((result = progress(c)) == 1) {
                finished(c);
                if (fresh) {
                    close_connection(c);
                    lost += open_connection(c) < 0;
                    break;
                }
                if (ask(c) < 0) {
                    result = -1;
                    break;
                }
            }
            if (!was && c->shaken)
                shaken++;
            if (result < 0) {
                fail(c->shaken ? "connection lost" : "handshake failed");
                close_connection(c);
                if (!fresh || errors > MOST_ERRORS || open_connection(c) < 0)
                    lost++;
            }
        }
    }
    double elapsed = counting ? now() - from : 0;
    cpu = counting ? cpu_of_proxy() - cpu : 0;
    printf("{\"requests\": %zu, \"seconds\": %.3f, \"rps\": %.1f, ", sample_count, elapsed,
           elapsed > 0 ? (double)sample_count / elapsed : 0.0);
    printf("\"p50_us\": %u, ", percentile(samples, sample_count, 50));
    printf("\"p99_us\": %u, \"cpu\": %.6f, \"answered\": %ld, ", percentile(samples, sample_count, 99), cpu, answered);
    printf("\"errors\": %ld, \"error\": \"%s\"}\n", errors, last_error);
    return errors || !sample_count;
}

/* Open and use the connections, a few at a time, then hold them. */
static int run_idle(struct conn *conns, int count) {
    int opened = 0, busy = 0, done = 0;
    struct epoll_event events[64];
    fresh = 1; /* ask as soon as the handshake is done */
    double begin = now();
    while (done < count && !errors && now() - begin < 120) {
        while (opened < count && busy < AT_A_TIME) {
            if (open_connection(&conns[opened]) < 0)
                break;
            opened++;
            busy++;
        }
        int ready = epoll_wait(poller, events, 64, 100);
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            int result = c->ssl ? progress(c) : 0;
            if (result == 1) {
                done++;
                busy--;
                free(c->in); /* the client's own memory matters to nobody, but there is only so much of it */
                c->in = NULL;
                c->used = 0;
                epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
            } else if (result < 0) {
                fail("connection lost");
                close_connection(c);
            }
        }
    }
    printf("{\"connections\": %d, \"errors\": %ld, \"error\": \"%s\"}\n", done, errors, last_error);
    fflush(stdout);
    char ignored[64];
    while (read(0, ignored, sizeof ignored) > 0)
        ;
    int there = 0;
    for (int i = 0; i < opened; i++) {
        struct conn *c = &conns[i];
        int got = c->ssl && !c->in ? SSL_read(c->ssl, ignored, sizeof ignored) : 0;
        there += got < 0 && SSL_get_error(c->ssl, got) == SSL_ERROR_WANT_READ;
    }
    printf("{\"connections\": %d, \"errors\": %d, \"error\": \"%s\"}\n", there, count - there,
           there < count ? "idle connections were lost" : "");
    return there < count;
}

static int add_request(const char *target) {
    char *text = NULL;
    const char *body = strcmp(options.method, "GET") == 0 ? "" : "Content-Length: 0\r\n";
    int length = asprintf(&text, "%s %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: Docker-Client/20.10\r\n%s\r\n", options.method,
                          target, options.host, options.port, body);
    if (length < 0 || length > 8000 || request_count >= MOST_TARGETS)
        return -1;
    requests[request_count++] = (struct text){text, length};
    return 0;
}

static int read_targets(void) {
    if (options.target)
        return add_request(options.target);
    FILE *file = fopen(options.targets, "r");
    char line[4096];
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = 0;
        if (*line && add_request(line) < 0)
            return -1;
    }
    return file && fclose(file) == 0 && request_count ? 0 : -1;
}

static int read_options(int argc, char **argv) {
    if (argc < 2)
        return -1;
    options.mode = argv[1];
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value)
            return -1;
        *value++ = 0;
        const char *names[] = {"host", "ca", "cert", "key", "target", "targets", "method"};
        const char **texts[] = {&options.host, &options.ca, &options.cert, &options.key,
                                &options.target, &options.targets, &options.method};
        int known = 0;
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            if (strcmp(argv[i], names[k]) == 0) {
                *texts[k] = value;
                known = 1;
            }
        if (strcmp(argv[i], "port") == 0)
            options.port = atoi(value);
        else if (strcmp(argv[i], "connections") == 0)
            options.connections = atoi(value);
        else if (strcmp(argv[i], "pid") == 0)
            options.pid = atoi(value);
        else if (strcmp(argv[i], "seconds") == 0)
            options.seconds = atof(value);
        else if (strcmp(argv[i], "bytes") == 0)
            options.bytes = strtoull(value, NULL, 10);
        else if (!known)
            return -1;
    }
    struct in_addr ignored;
    int count = options.connections;
    return options.ca && options.cert && options.key && options.port > 0 && options.port < 65536 &&
                   (options.target || options.targets) && inet_pton(AF_INET, options.host, &ignored) == 1 && count >= 1 &&
                   count <= 16384 && options.seconds > 0 && options.seconds <= 600
               ? 0
               : -1;
}

int main(int argc, char **argv) {
    if (read_options(argc, argv) < 0) {
        fprintf(stderr, "usage: load_client keep|new|idle|get|put|echo|rtt port=N ca=F cert=F key=F target=T|targets=F\n"
                        "       [connections=N] [seconds=S] [bytes=N] [method=M] [host=A] [pid=P]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (strcmp(options.mode, "idle") != 0) { /* fewer system calls, so that the client is not the limit */
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_default_read_buffer_len(context, 65536);
    }
    if (SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 || SSL_CTX_set1_groups_list(context, "X25519") != 1 ||
        SSL_CTX_load_verify_locations(context, options.ca, NULL) != 1 ||
        SSL_CTX_use_certificate_chain_file(context, options.cert) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, options.key, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        return 2;
    }
    const char *mode = options.mode;
    if (strcmp(mode, "get") == 0 || strcmp(mode, "put") == 0 || strcmp(mode, "echo") == 0 || strcmp(mode, "rtt") == 0)
        return run_stream();
    fresh = strcmp(mode, "new") == 0;
    int idle = strcmp(mode, "idle") == 0;
    if (!fresh && !idle && strcmp(mode, "keep") != 0) {
        fprintf(stderr, "load_client: unknown mode: %s\n", mode);
        return 2;
    }
    if (read_targets() < 0) {
        fprintf(stderr, "load_client: no targets, too many, or one too long\n");
        return 2;
    }
    poller = epoll_create1(0);
    struct conn *conns = calloc((size_t)options.connections, sizeof *conns);
    if (poller < 0 || !conns)
        return 2;
    return idle ? run_idle(conns, options.connections) : run_requests(conns, options.connections);
}
