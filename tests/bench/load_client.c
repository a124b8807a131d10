/* The bench's load: HTTP/1.1 over mutual TLS 1.3 from one thread, closed loop.
 *
 *   load_client keep|new HOST PORT CA CERT KEY CONNECTIONS SECONDS TARGET
 *
 * keep: CONNECTIONS connections are opened first, then each sends GET TARGET, reads the whole answer, sends again.
 * new:  each of CONNECTIONS slots opens a connection (full handshake, no resumption), asks once, closes, again.
 * The first tenth of SECONDS warms up and is not counted. Prints one JSON object: requests, seconds, rps, p50_us,
 * p99_us, errors. Latency is from the first byte written (new: from connect) to the last byte read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { INPUT = 65536, MOST_SAMPLES = 8000000, MOST_ERRORS = 100 };

struct conn {
    int fd;
    SSL *ssl;
    int shaken;      /* the handshake is done */
    int asked;       /* a request is out */
    size_t used;
    long expected;   /* bytes of the whole answer, 0: head not read yet, -1: chunked */
    double since;
    char in[INPUT];
};

static SSL_CTX *context;
static struct sockaddr_in address;
static char request[2048];
static int request_length, poller, fresh, counting;
static unsigned *samples;
static size_t sample_count;
static long errors;
static char last_error[160];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    unsigned long code = ERR_get_error();
    snprintf(last_error, sizeof last_error, "%s%s%s", what, code ? ": " : "", code ? ERR_reason_error_string(code) : "");
    for (char *p = last_error; *p; p++)
        if (*p == '"' || *p == '\\' || *p < ' ')
            *p = ' ';
    ERR_clear_error();
    errors++;
}

static int open_connection(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->since = now();
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        fail("connect");
        close(c->fd);
        return -1;
    }
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
}

static int ask(struct conn *c) {
    if (!fresh)
        c->since = now();
    c->used = 0;
    c->expected = 0;
    c->asked = 1;
    return SSL_write(c->ssl, request, request_length) == request_length ? 0 : -1;
}

static void measure(struct conn *c) {
    while (c->expected == 0 && c->used > 4) {
        char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
        if (!end)
            return;
        if (strncmp(c->in, "HTTP/1.1 200", 12) != 0) {
            c->in[c->used < 60 ? c->used : 60] = 0;
            fail(c->in);
        }
        c->expected = -1;
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

static int by_value(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return x < y ? -1 : x > y;
}

static void finished(struct conn *c) {
    if (counting && sample_count < MOST_SAMPLES)
        samples[sample_count++] = (unsigned)((now() - c->since) * 1e6);
}

int main(int argc, char **argv) {
    if (argc != 10) {
        fprintf(stderr, "usage: load_client keep|new HOST PORT CA CERT KEY CONNECTIONS SECONDS TARGET\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    fresh = strcmp(argv[1], "new") == 0;
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)atoi(argv[3]));
    int count = atoi(argv[7]);
    double seconds = atof(argv[8]);
    if (inet_pton(AF_INET, argv[2], &address.sin_addr) != 1 || count < 1 || count > 4096 || seconds <= 0 || seconds > 600)
        return 2;
    request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%s\r\nUser-Agent: Docker-Client/20.10\r\n\r\n",
                              argv[9], argv[2], argv[3]);
    if (request_length >= (int)sizeof request)
        return 2;
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 || SSL_CTX_set1_groups_list(context, "X25519") != 1 ||
        SSL_CTX_load_verify_locations(context, argv[4], NULL) != 1 ||
        SSL_CTX_use_certificate_chain_file(context, argv[5]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, argv[6], SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        return 2;
    }
    samples = malloc(sizeof *samples * MOST_SAMPLES);
    poller = epoll_create1(0);
    struct conn *conns = calloc((size_t)count, sizeof *conns);
    for (int i = 0; i < count; i++)
        if (open_connection(&conns[i]) < 0)
            return 1;
    struct epoll_event events[256];
    int shaken = 0, lost = 0;
    double begin = now(), warm = 0, stop = 0, from = 0;
    while (1) {
        double t = now();
        if (!stop && (fresh || shaken == count)) { /* the clock starts when all are connected */
            warm = t + seconds * 0.1;
            stop = t + seconds;
            for (int i = 0; !fresh && i < count; i++)
                if (ask(&conns[i]) < 0)
                    return 1;
        }
        if (stop && !counting && t >= warm) {
            counting = 1;
            from = t;
        }
        if ((stop && t >= stop) || errors > MOST_ERRORS || lost >= count || (!stop && t - begin > 30))
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
                    if (open_connection(c) < 0)
                        return 1;
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
                fail("connection lost");
                close_connection(c);
                if (!fresh || errors > MOST_ERRORS || open_connection(c) < 0) {
                    c->ssl = NULL;
                    lost++;
                }
            }
        }
    }
    double elapsed = counting ? now() - from : 0;
    qsort(samples, sample_count, sizeof *samples, by_value);
    printf("{\"requests\": %zu, \"seconds\": %.3f, \"rps\": %.1f, \"p50_us\": %u, \"p99_us\": %u, \"errors\": %ld, \"error\": \"%s\"}\n",
           sample_count, elapsed, elapsed > 0 ? (double)sample_count / elapsed : 0.0,
           sample_count ? samples[sample_count / 2] : 0, sample_count ? samples[sample_count * 99 / 100] : 0, errors, last_error);
    return errors || !sample_count;
}
