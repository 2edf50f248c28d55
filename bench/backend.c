/* The backend of the benchmark: a mail server that costs as little as possible.
 *
 * It answers at once, stores nothing, and handles XCLIENT as Postfix does: it offers it
 * until it has been used.  It does not read content.  The client must declare the exact
 * size (MAIL ... SIZE=n, RFC 1870, without the final dot), and the kernel discards that many
 * bytes.  With --expects-header it offers no XCLIENT, and a connection begins with a PROXY header
 * of version 2, which must come in one piece.  With --pass DIRECTORY it also takes sockets as
 * Postfix's smtpd does, at a unix socket in there that has the number of its port for a name.  The program prints its port on 127.0.0.1, and runs
 * until its standard input ends.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common.h"

#define GREETING "220 backend.example ESMTP\r\n"
#define OFFER                                                                  \
    "250-backend.example\r\n250-PIPELINING\r\n250-SIZE 102400000\r\n"          \
    "250-ETRN\r\n"
#define OFFER_XCLIENT "250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n"
#define OFFER_END                                                              \
    "250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"              \
    "250 CHUNKING\r\n"
#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"
#define SIGNATURE_LENGTH 12
#define HEADER_START 16 /* of a PROXY header; its last two bytes are the length of the rest */
#define END_OF_CONTENT 3 /* ".\r\n", which the declared size does not include */
#define MAX_LINE 1024
#define MAX_REPLIES 8192

struct connection {
    int fd;
    int knows_client;   /* XCLIENT has been used, or the header has come */
    long long declared; /* size of the message, from MAIL */
    long long content;  /* bytes of content still to come */
    int held;           /* bytes of an unfinished line */
    char line[MAX_LINE];
};

static int expects_header;

struct replies {
    char text[MAX_REPLIES];
    size_t length;
};

static void say(struct replies *out, const char *text)
{
    size_t length = strlen(text);
    if (out->length + length <= MAX_REPLIES) {
        memcpy(out->text + out->length, text, length);
        out->length += length;
    }
}

static int is_verb(const char *line, const char *verb)
{
    return strncasecmp(line, verb, strlen(verb)) == 0;
}

static void answer_mail(struct connection *it, const char *line, struct replies *out)
{
    const char *size = strcasestr(line, " SIZE=");
    it->declared = size ? atoll(size + strlen(" SIZE=")) : -1;
    say(out, size ? "250 2.1.0 Ok\r\n" : "501 5.5.4 SIZE= is needed here\r\n");
}

/* Answers one command; returns 0 if the connection must be closed. */
static int answer(struct connection *it, const char *line, struct replies *out)
{
    if (is_verb(line, "EHLO")) {
        say(out, OFFER);
        if (!it->knows_client)
            say(out, OFFER_XCLIENT);
        say(out, OFFER_END);
    } else if (is_verb(line, "XCLIENT ")) {
        it->knows_client = 1;
        say(out, GREETING);
    } else if (is_verb(line, "MAIL ")) {
        answer_mail(it, line, out);
    } else if (is_verb(line, "RCPT ")) {
        say(out, "250 2.1.5 Ok\r\n");
    } else if (is_verb(line, "DATA")) {
        it->content = it->declared + END_OF_CONTENT;
        say(out, "354 End data with <CR><LF>.<CR><LF>\r\n");
    } else if (is_verb(line, "NOOP")) {
        say(out, "250 2.0.0 Ok\r\n");
    } else if (is_verb(line, "QUIT")) {
        say(out, "221 2.0.0 Bye\r\n");
        return 0;
    } else {
        say(out, "500 5.5.2 Error: command not recognized\r\n");
    }
    return 1;
}

static void skip_content(struct connection *it, long long octets, struct replies *out)
{
    it->content -= octets;
    if (it->content == 0)
        say(out, "250 2.0.0 Ok: queued as 4dNbenchQz1\r\n");
}

/* Returns the length of the PROXY header at the beginning, or 0 if there is none. */
static long header_length(const char *data, long length)
{
    long whole;
    if (length < HEADER_START || memcmp(data, SIGNATURE, SIGNATURE_LENGTH) != 0)
        return 0;
    whole = HEADER_START + (unsigned char)data[14] * 256 + (unsigned char)data[15];
    return whole <= length ? whole : 0;
}

/* Reads the received bytes; returns 0 if the connection must be closed. */
static int read_octets(struct connection *it, char *data, long length, struct replies *out)
{
    if (expects_header && !it->knows_client) {
        long header = header_length(data, length);
        if (!header)
            return 0;
        it->knows_client = 1;
        data += header;
        length -= header;
    }
    while (length > 0) {
        if (it->content > 0) {
            long taken = it->content < length ? (long)it->content : length;
            skip_content(it, taken, out);
            data += taken;
            length -= taken;
            continue;
        }
        char *end = memchr(data, '\n', (size_t)length);
        long taken = end ? end - data + 1 : length;
        if (it->held + taken >= MAX_LINE)
            return 0;
        memcpy(it->line + it->held, data, (size_t)taken);
        it->held += (int)taken;
        data += taken;
        length -= taken;
        if (end) {
            it->line[it->held] = '\0';
            it->held = 0;
            if (!answer(it, it->line, out))
                return 0;
        }
    }
    return 1;
}

/* Returns 0 if the connection must be closed. */
static int serve(struct connection *it)
{
    static char buffer[65536];
    static struct replies out;
    int open = 1;
    ssize_t length;

    out.length = 0;
    if (it->content > 0) {
        /* For TCP, MSG_TRUNC discards without copying (tcp(7)). */
        length = recv(it->fd, NULL, (size_t)it->content, MSG_TRUNC);
        if (length > 0)
            skip_content(it, length, &out);
    } else {
        length = recv(it->fd, buffer, sizeof buffer, 0);
        if (length > 0)
            open = read_octets(it, buffer, length, &out);
    }
    if (length == 0 || (length < 0 && errno != EAGAIN))
        return 0;
    if (out.length && send(it->fd, out.text, out.length, 0) != (ssize_t)out.length)
        return 0;
    return open;
}

static void accept_all(int listening, int queue)
{
    int fd;
    while ((fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *it = calloc(1, sizeof *it);
        CHECK(it, "calloc");
        it->fd = fd;
        if (send(fd, GREETING, strlen(GREETING), 0) < 0) {
            close(fd);
            free(it);
            continue;
        }
        watch(queue, EPOLL_CTL_ADD, fd, EPOLLIN, it);
    }
    CHECK(errno == EAGAIN || errno == ECONNABORTED, "accept");
}

/* Takes a socket that a front door gives us, with everything that comes with it. */
static int take_socket(int from)
{
    char octets[512], control[CMSG_SPACE(sizeof(int))];
    struct iovec piece = {octets, sizeof octets};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *rights;
    int fd = -1;
    if (recvmsg(from, &message, 0) > 0 && (rights = CMSG_FIRSTHDR(&message)))
        memcpy(&fd, CMSG_DATA(rights), sizeof fd);
    close(from); /* the receipt */
    return fd;
}

static void take_all(int listening, int queue)
{
    int from;
    while ((from = accept(listening, NULL, NULL)) >= 0) {
        int fd = take_socket(from);
        struct connection *it = calloc(1, sizeof *it);
        CHECK(it, "calloc");
        it->fd = fd;
        it->knows_client = 1;
        if (fd < 0 || send(fd, GREETING, strlen(GREETING), 0) < 0) {
            close(fd);
            free(it);
            continue;
        }
        watch(queue, EPOLL_CTL_ADD, fd, EPOLLIN, it);
    }
    CHECK(errno == EAGAIN, "accept");
}

static int listen_for_sockets(const char *directory, int port)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(fd >= 0, "socket");
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%d", directory, port);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    CHECK(listen(fd, 4096) == 0, "listen");
    return fd;
}

static int listen_somewhere(const char *directory, int *for_sockets)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(fd >= 0, "socket");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "nodelay");
    CHECK(bind(fd, (struct sockaddr *)&address, length) == 0, "bind");
    CHECK(listen(fd, 4096) == 0, "listen");
    CHECK(getsockname(fd, (struct sockaddr *)&address, &length) == 0, "getsockname");
    *for_sockets = directory ? listen_for_sockets(directory, ntohs(address.sin_port)) : -1;
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    static char listening_mark, input_mark, sockets_mark;
    struct epoll_event events[256];
    int queue = epoll_create1(0), listening, for_sockets;
    const char *directory = NULL;

    if (argc > 1 && strcmp(argv[1], "--expects-header") == 0)
        expects_header = 1;
    else if (argc > 2 && strcmp(argv[1], "--pass") == 0)
        directory = argv[2];
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    CHECK(queue >= 0, "epoll_create1");
    listening = listen_somewhere(directory, &for_sockets);
    watch(queue, EPOLL_CTL_ADD, listening, EPOLLIN, &listening_mark);
    if (for_sockets >= 0)
        watch(queue, EPOLL_CTL_ADD, for_sockets, EPOLLIN, &sockets_mark);
    watch(queue, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &input_mark);
    for (;;) {
        int count = epoll_wait(queue, events, 256, -1);
        CHECK(count >= 0 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *it = events[i].data.ptr;
            if ((char *)it == &input_mark)
                return 0;
            if ((char *)it == &listening_mark) {
                accept_all(listening, queue);
            } else if ((char *)it == &sockets_mark) {
                take_all(for_sockets, queue);
            } else if (!serve(it)) {
                /* The front door may still have a copy, which would keep it in the set. */
                watch(queue, EPOLL_CTL_DEL, it->fd, 0, NULL);
                close(it->fd);
                free(it);
            }
        }
    }
}
