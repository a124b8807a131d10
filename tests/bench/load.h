/* What the two parts of the load client share. */
#ifndef LOAD_H
#define LOAD_H
#include <openssl/ssl.h>

struct options {
    const char *mode, *host, *ca, *cert, *key;
    const char *target;      /* one, or NULL */
    const char *targets;     /* a file of one target a line, asked for in turn */
    const char *method;      /* of small requests */
    int port, connections;
    int pid;                 /* whose CPU time is counted, 0: nobody's */
    double seconds;
    unsigned long long bytes;
};

extern struct options options;
extern SSL_CTX *context;
extern char last_error[160];

double now(void);
/* User and system time of the process options.pid, in seconds. */
double cpu_of_proxy(void);
/* Keep the reason, with OpenSSL's words if it has some, for the JSON. */
void note_error(const char *what);
/* A TCP connection that blocks (0) or not (1), -1 with the reason noted. */
int open_socket(int nonblocking);
/* Sort microseconds and return the one that `hundredths` of them do not exceed. */
unsigned percentile(unsigned *values, size_t count, size_t hundredths);

/* Modes get, put, echo, rtt: one connection; prints one JSON object and returns the exit status. */
int run_stream(void);

#endif
