/* The load client's modes on one connection: whole downloads and uploads, and tunnels. */
#define _GNU_SOURCE
#include "load.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { PIECE = 262144, CHUNK = 32768, PING = 64, MOST_PINGS = 1000000, PATIENCE_MS = 30000 };

static SSL *ssl;
static int fd;
static char piece[PIECE], answer[65536];
static double began, cpu_began;

static int end_badly(const char *what) {
    note_error(what);
    printf("{\"errors\": 1, \"error\": \"%s\"}\n", last_error);
    return 1;
}

static void begin(void) {
    began = now();
    cpu_began = cpu_of_proxy();
}

static int report_bytes(unsigned long long bytes) {
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu\": %.6f, \"errors\": 0, \"error\": \"\"}\n", bytes, now() - began,
           cpu_of_proxy() - cpu_began);
    return 0;
}

static int write_all(const char *data, int length) {
    return SSL_write(ssl, data, length) == length ? 0 : -1;
}

/* Read until a head's end; its length, and in *used how much was read in all; -1 when the connection ends. */
static int read_head(int *used) {
    *used = 0;
    while (*used < (int)sizeof answer - 1) {
        int got = SSL_read(ssl, answer + *used, (int)sizeof answer - 1 - *used);
        if (got <= 0)
            return -1;
        *used += got;
        answer[*used] = 0;
        char *end = strstr(answer, "\r\n\r\n");
        if (end)
            return (int)(end + 4 - answer);
    }
    return -1;
}

/* Read a body to its end, by length or, chunked, by the empty chunk; the free Engine's bodies never look like one. */
static long long read_body(int head, int used) {
    long long length = -1, got = used - head;
    char tail[5] = {0};
    for (char *line = answer; line < answer + head - 2; line = strchr(line, '\n') + 1)
        if (strncasecmp(line, "content-length:", 15) == 0)
            length = atoll(line + 15);
    int kept = got < 5 ? (int)got : 5;
    memcpy(tail + 5 - kept, answer + used - kept, (size_t)kept);
    while (length < 0 ? memcmp(tail, "0\r\n\r\n", 5) != 0 : got < length) {
        int n = SSL_read(ssl, piece, PIECE);
        if (n <= 0)
            return -1;
        got += n;
        kept = n < 5 ? n : 5;
        memmove(tail, tail + kept, (size_t)(5 - kept));
        memcpy(tail + 5 - kept, piece + n - kept, (size_t)kept);
    }
    return got;
}

static int send_head(const char *method, const char *rest) {
    char head[4096];
    int length = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: Docker-Client/20.10\r\n%s", method,
                          options.target, options.host, options.port, rest);
    return length < (int)sizeof head ? write_all(head, length) : -1;
}

static int download(void) {
    int used, head;
    begin();
    if (send_head("GET", "\r\n") < 0)
        return end_badly("the request cannot be sent");
    if ((head = read_head(&used)) < 0 || strncmp(answer, "HTTP/1.1 200", 12) != 0)
        return end_badly(head < 0 ? "no answer" : answer);
    long long got = read_body(head, used);
    return got < 0 ? end_badly("the answer broke off") : report_bytes((unsigned long long)got);
}

static int upload(void) {
    static char chunk[CHUNK + 16];
    int start = sprintf(chunk, "%x\r\n", CHUNK), used, head;
    memset(chunk + start, 'y', CHUNK);
    memcpy(chunk + start + CHUNK, "\r\n", 2);
    begin();
    if (send_head("POST", "Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n") < 0)
        return end_badly("the request cannot be sent");
    for (unsigned long long sent = 0; sent < options.bytes; sent += CHUNK)
        if (write_all(chunk, start + CHUNK + 2) < 0)
            return end_badly("the upload broke off");
    if (write_all("0\r\n\r\n", 5) < 0 || (head = read_head(&used)) < 0)
        return end_badly("no answer");
    if (strncmp(answer, "HTTP/1.1 200", 12) != 0 || read_body(head, used) < 0)
        return end_badly(answer);
    return report_bytes(options.bytes / CHUNK * CHUNK);
}

/* Attach to a container and have its stream. HAProxy passes no Upgrade on that has a body, as an exec's has. */
static int open_tunnel(void) {
    const char *rest = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n";
    int used, head = send_head("POST", rest) < 0 ? -1 : read_head(&used);
    if (head < 0)
        return -1;
    return strncmp(answer, "HTTP/1.1 101", 12) == 0 && used == head ? 0 : -1;
}

/* Wait until the socket can do what OpenSSL asked for. */
static int wait_for(int result, short *events) {
    int reason = SSL_get_error(ssl, result);
    if (reason == SSL_ERROR_WANT_READ)
        *events |= POLLIN;
    else if (reason == SSL_ERROR_WANT_WRITE)
        *events |= POLLOUT;
    else
        return -1;
    return 0;
}

static int echo(void) {
    unsigned long long sent = 0, got = 0;
    static char back[PIECE];
    memset(piece, 'e', PIECE);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    SSL_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    begin();
    while (got < options.bytes) {
        struct pollfd waiting = {.fd = fd};
        int moved = 0;
        if (sent < options.bytes) {
            unsigned long long left = options.bytes - sent;
            int n = SSL_write(ssl, piece, left < PIECE ? (int)left : PIECE);
            if (n > 0) {
                sent += (unsigned)n;
                moved = 1;
            } else if (wait_for(n, &waiting.events) < 0) {
                return end_badly("the stream broke off");
            }
        }
        int n = SSL_read(ssl, back, PIECE);
        if (n > 0) {
            if (memcmp(back, piece, (size_t)n) != 0)
                return end_badly("other bytes came back");
            got += (unsigned)n;
            moved = 1;
        } else if (wait_for(n, &waiting.events) < 0) {
            return end_badly("the stream broke off");
        }
        if (!moved && poll(&waiting, 1, PATIENCE_MS) == 0)
            return end_badly("the stream stands still");
    }
    return report_bytes(got);
}

static int ping(void) {
    unsigned *samples = malloc(sizeof *samples * MOST_PINGS);
    size_t count = 0;
    char there[PING], back[PING];
    memset(there, 'p', PING);
    double start = now(), warm = start + options.seconds * 0.1, stop = start + options.seconds;
    int counting = 0;
    for (double t = now(); t < stop && count < MOST_PINGS;) {
        if (!counting && t >= warm) {
            counting = 1;
            begin();
        }
        if (write_all(there, PING) < 0)
            return end_badly("the stream broke off");
        for (int have = 0; have < PING;) {
            int n = SSL_read(ssl, back + have, PING - have);
            if (n <= 0)
                return end_badly("the stream broke off");
            have += n;
        }
        double then = now();
        if (counting)
            samples[count++] = (unsigned)((then - t) * 1e7); /* tenths of a microsecond */
        t = then;
    }
    double spent = now() - began, cpu = cpu_of_proxy() - cpu_began;
    printf("{\"requests\": %zu, \"seconds\": %.3f, \"rps\": %.1f, ", count, spent, spent > 0 ? (double)count / spent : 0.0);
    printf("\"p50_us\": %.1f, ", percentile(samples, count, 50) / 10.0);
    printf("\"p99_us\": %.1f, \"cpu\": %.6f, \"errors\": %d, \"error\": \"%s\"}\n", percentile(samples, count, 99) / 10.0, cpu,
           !count, count ? "" : "no round trip was complete");
    return !count;
}

int run_stream(void) {
    fd = open_socket(0);
    if (fd < 0)
        return end_badly(last_error);
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) != 1)
        return end_badly("handshake failed");
    if (strcmp(options.mode, "get") == 0)
        return download();
    if (strcmp(options.mode, "put") == 0)
        return upload();
    if (!options.target || open_tunnel() < 0)
        return end_badly(*answer ? answer : "no tunnel");
    return strcmp(options.mode, "echo") == 0 ? echo() : ping();
}
