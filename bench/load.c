/* The load generator of the benchmark: SMTP clients behind a proxy.
 *
 * Runs --sessions sessions, --at-once of them at a time.  Each sends a PROXY header first (or
 * nothing, or EHLO and XCLIENT as a front door would) and follows the same script.  Prints
 * one JSON object: the number of failed sessions, the time taken, and the times to the
 * greeting (from before connect() to the line end of the 220).  With --hold the sessions
 * stop at that point of the script and stay open until standard input ends.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

/* The client and server addresses in the header are documentation addresses. */
#define V1_HEADER "PROXY TCP4 198.51.100.7 192.0.2.25 40321 25\r\n"
static const char V2_HEADER[] =
    "\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"
    "\xc6\x33\x64\x07\xc0\x00\x02\x19\x9d\x81\x00\x19";
#define V2_PORT 24 /* where the client's port is in it */
/* The same addresses, sent to the mail server as a front door would send them. */
#define XCLIENT                                                                \
    "XCLIENT ADDR=198.51.100.7 PORT=40321 NAME=[UNAVAILABLE] "                 \
    "REVERSE_NAME=[UNAVAILABLE] DESTADDR=192.0.2.25 DESTPORT=25\r\n"
#define LINE "What a message is made of: lines, of which none has more than seventy octets\r\n"
#define END_OF_CONTENT ".\r\n"
#define BIG 65536 /* content above this size is sent from a file, without copying */
#define MAX_STEPS 256

struct step {
    const char *text;
    size_t length;
    int replies; /* number to wait for before the next step */
    int content;
};

struct session {
    int fd;
    int step;
    int replies;       /* still to come in this step */
    int column;        /* in the reply line */
    int wrong;         /* this line is not a positive reply */
    int last;          /* this line is the last of a reply */
    int blocked;       /* waits until it can send more */
    size_t sent;       /* bytes of this step */
    uint64_t began_us;
};

static struct {
    struct sockaddr_in to;
    const char *header;
    size_t header_length;
    int sessions, at_once, messages, pipelining, xclient, limit_s;
    size_t octets;
    const char *hold;
    const char *recipient;
} options = {.sessions = 1, .at_once = 1, .limit_s = 120, .octets = 2048,
             .recipient = "user@example.test"};

static struct step script[MAX_STEPS];
static int steps;
static int greeting_step;
static int content_file;
static int queue;
static int begun, ended, failed, held;
static uint32_t *greeting_us; /* of each session that was greeted */
static int greeted;

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* The script. */

static void add_step(const char *text, size_t length, int replies, int content)
{
    if (steps == MAX_STEPS) {
        fprintf(stderr, "load: too many messages\n");
        exit(2);
    }
    script[steps++] = (struct step){text, length, replies, content};
}

static void add_text(const char *text, int replies)
{
    add_step(text, strlen(text), replies, 0);
}

/* Makes the content with its final dot, followed by *next* (QUIT, if pipelining). */
static char *make_content(const char *next, size_t *length)
{
    size_t size = options.octets, at;
    char *text = malloc(size + strlen(LINE) + strlen(END_OF_CONTENT) + strlen(next) + 1);
    CHECK(text, "malloc");
    for (at = 0; at < size; at += strlen(LINE))
        memcpy(text + at, LINE, strlen(LINE));
    memcpy(text + size - 2, "\r\n", 2);
    *length = (size_t)(stpcpy(stpcpy(text + size, END_OF_CONTENT), next) - text);
    content_file = memfd_create("content", 0);
    CHECK(content_file >= 0, "memfd_create");
    CHECK(write(content_file, text, *length) == (ssize_t)*length, "write");
    return text;
}

static void write_script(void)
{
    static char mail[256], rcpt[256], envelope[600];
    const char *next = options.pipelining ? "QUIT\r\n" : "";
    size_t length;
    char *content = make_content(next, &length);

    snprintf(mail, sizeof mail, "MAIL FROM:<bench@example.net> SIZE=%zu\r\n", options.octets);
    snprintf(rcpt, sizeof rcpt, "RCPT TO:<%s>\r\n", options.recipient);
    snprintf(envelope, sizeof envelope, "%s%sDATA\r\n", mail, rcpt);
    add_step(options.header, options.header_length, 1, 0); /* the greeting */
    if (options.xclient) {
        add_text("EHLO front.example\r\n", 1);
        add_text(XCLIENT, 1); /* its reply is the greeting that we time */
    }
    greeting_step = steps - 1;
    if (options.messages || options.hold)
        add_text("EHLO client.example.net\r\n", 1);
    if (options.hold) {
        if (strcmp(options.hold, "rcpt") == 0) {
            add_text(mail, 1);
            add_text(rcpt, 1);
        }
        return;
    }
    for (int i = 0; i < options.messages; i++) {
        if (options.pipelining) {
            add_text(envelope, 3);
            add_step(content, length, 2, 1);
            return;
        }
        add_text(mail, 1);
        add_text(rcpt, 1);
        add_text("DATA\r\n", 1);
        add_step(content, length, 1, 1);
    }
    add_text("QUIT\r\n", 1);
}

/* Sessions. */

/* Returns the header for the next session.  In a v2 header each client has a port of its own,
 * from a random one on, because with the client's own address two sessions cannot share it. */
static const char *next_header(void)
{
    static char header[sizeof V2_HEADER];
    uint16_t port;

    if (script[0].text != V2_HEADER)
        return script[0].text;
    port = htons((uint16_t)(1024 + (getpid() * 977 + begun) % 60000));
    memcpy(header, V2_HEADER, sizeof header);
    memcpy(header + V2_PORT, &port, sizeof port);
    return header;
}

static void begin_session(struct session *it)
{
    static const int on = 1;
    const char *header = next_header();
    memset(it, 0, sizeof *it);
    it->began_us = now_us();
    it->fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(it->fd >= 0, "socket");
    CHECK(connect(it->fd, (struct sockaddr *)&options.to, sizeof options.to) == 0, "connect");
    CHECK(fcntl(it->fd, F_SETFL, O_NONBLOCK) == 0, "fcntl");
    CHECK(setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "nodelay");
    it->replies = script[0].replies;
    begun++;
    if (script[0].length)
        CHECK(send(it->fd, header, script[0].length, 0) >= 0, "send");
    watch(queue, EPOLL_CTL_ADD, it->fd, EPOLLIN, it);
}

static void end_session(struct session *it, const char *problem)
{
    if (problem && failed++ == 0)
        fprintf(stderr, "load: at step %d: %s\n", it->step, problem);
    close(it->fd);
    ended++;
    if (begun < options.sessions)
        begin_session(it);
}

/* Continues to send the current step; returns 0 if the connection is lost. */
static int send_on(struct session *it)
{
    struct step *now = &script[it->step];
    while (it->sent < now->length) {
        off_t offset = (off_t)it->sent;
        ssize_t sent = now->content && now->length > BIG
            ? sendfile(it->fd, content_file, &offset, now->length - it->sent)
            : send(it->fd, now->text + it->sent, now->length - it->sent, 0);
        if (sent < 0 && errno != EAGAIN)
            return 0;
        if (sent < 0) {
            if (!it->blocked)
                watch(queue, EPOLL_CTL_MOD, it->fd, EPOLLIN | EPOLLOUT, it);
            it->blocked = 1;
            return 1;
        }
        it->sent += (size_t)sent;
    }
    if (it->blocked)
        watch(queue, EPOLL_CTL_MOD, it->fd, EPOLLIN, it);
    it->blocked = 0;
    return 1;
}

/* Goes to the next step after all replies of this one; returns 0 after the last step. */
static int go_on(struct session *it)
{
    if (it->step == greeting_step)
        greeting_us[greeted++] = (uint32_t)(now_us() - it->began_us);
    if (it->step + 1 == steps) {
        if (options.hold)
            held++;
        else
            end_session(it, NULL);
        return 0;
    }
    it->step++;
    it->sent = 0;
    it->replies = script[it->step].replies;
    if (!send_on(it)) {
        end_session(it, "lost while sending");
        return 0;
    }
    return 1;
}

/* Reads one byte of the replies; returns 1 at the end of a step, -1 at a wrong reply. */
static int read_octet(struct session *it, char octet)
{
    if (it->column == 0)
        it->wrong = octet != '2' && octet != '3';
    else if (it->column == 3)
        it->last = octet != '-';
    it->column++;
    if (octet != '\n')
        return 0;
    it->column = 0;
    if (it->wrong)
        return -1;
    return it->last && --it->replies == 0;
}

static void read_replies(struct session *it)
{
    char data[4096];
    ssize_t length = recv(it->fd, data, sizeof data - 1, 0);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0) {
        end_session(it, length ? strerror(errno) : "closed by the other end");
        return;
    }
    data[length] = '\0';
    for (ssize_t i = 0; i < length; i++) {
        int found = read_octet(it, data[i]);
        if (found < 0) {
            end_session(it, data);
            return;
        }
        if (found > 0 && !go_on(it))
            return;
    }
}

static void handle(struct session *it, unsigned events)
{
    if (events & EPOLLOUT && !send_on(it))
        end_session(it, "lost while sending");
    else if (events & ~(unsigned)EPOLLOUT)
        read_replies(it);
}

/* The result. */

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static uint32_t quantile(double part)
{
    return greeted ? greeting_us[(int)(part * (greeted - 1))] : 0;
}

static void print_result(uint64_t took_us)
{
    uint32_t upper = 1;
    int at = 0;

    qsort(greeting_us, (size_t)greeted, sizeof *greeting_us, compare);
    printf("{\"sessions\": %d, \"failed\": %d, \"held\": %d, \"seconds\": %.6f, ", begun,
           failed, held, (double)took_us / 1e6);
    printf("\"greeting_p50_us\": %u, \"greeting_p90_us\": %u, \"greeting_p99_us\": %u, ",
           quantile(0.5), quantile(0.9), quantile(0.99));
    /* Each entry: upper bound in microseconds, and number of sessions above the bound
     * of the entry before. */
    printf("\"greeting_histogram\": [");
    for (int first = 1; at < greeted; upper *= 2) {
        int from = at;
        while (at < greeted && greeting_us[at] <= upper)
            at++;
        if (at > from) {
            printf("%s[%u, %d]", first ? "" : ", ", upper, at - from);
            first = 0;
        }
    }
    printf("]}\n");
    fflush(stdout);
}

static void read_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"port", required_argument, 0, 'p'},     {"header", required_argument, 0, 'h'},
        {"sessions", required_argument, 0, 'n'}, {"at-once", required_argument, 0, 'c'},
        {"messages", required_argument, 0, 'm'}, {"octets", required_argument, 0, 'o'},
        {"pipelining", no_argument, 0, 'l'},     {"hold", required_argument, 0, 'i'},
        {"limit-s", required_argument, 0, 't'},  {"recipient", required_argument, 0, 'r'},
        {0, 0, 0, 0}};
    int option;
    options.to.sin_family = AF_INET;
    options.to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    options.header = "";
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'p': options.to.sin_port = htons((uint16_t)atoi(optarg)); break;
        case 'n': options.sessions = atoi(optarg); break;
        case 'c': options.at_once = atoi(optarg); break;
        case 'm': options.messages = atoi(optarg); break;
        case 'o': options.octets = (size_t)atoll(optarg); break;
        case 'l': options.pipelining = 1; break;
        case 'i': options.hold = optarg; break;
        case 't': options.limit_s = atoi(optarg); break;
        case 'r': options.recipient = optarg; break;
        case 'h':
            if (strcmp(optarg, "v1") == 0) {
                options.header = V1_HEADER;
                options.header_length = sizeof V1_HEADER - 1;
            } else if (strcmp(optarg, "v2") == 0) {
                options.header = V2_HEADER;
                options.header_length = sizeof V2_HEADER - 1;
            }
            options.xclient = strcmp(optarg, "xclient") == 0;
            break;
        default: exit(2);
        }
    }
    if (options.to.sin_port == 0 || options.sessions < 1 || options.at_once < 1) {
        fprintf(stderr, "load: --port, --sessions and --at-once are needed\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct epoll_event events[256];
    struct session *all;
    uint64_t start_us;
    int places;

    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    read_options(argc, argv);
    write_script();
    places = options.hold ? options.sessions : options.at_once;
    all = calloc((size_t)places, sizeof *all);
    greeting_us = calloc((size_t)options.sessions, sizeof *greeting_us);
    queue = epoll_create1(0);
    CHECK(all && greeting_us && queue >= 0, "set-up");

    start_us = now_us();
    while (ended + held < options.sessions) {
        while (begun < options.sessions && begun - ended - held < options.at_once &&
               begun < places)
            begin_session(&all[begun]);
        int count = epoll_wait(queue, events, 256, 1000);
        CHECK(count >= 0 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < count; i++)
            handle(events[i].data.ptr, events[i].events);
        if (now_us() - start_us > (uint64_t)options.limit_s * 1000000) {
            fprintf(stderr, "load: not done within %d s\n", options.limit_s);
            return 1;
        }
    }
    print_result(now_us() - start_us);
    if (options.hold)
        while (read(STDIN_FILENO, events, sizeof events) > 0)
            ;
    return failed ? 1 : 0;
}
