/* Functions that load.c and backend.c share. */

#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#define CHECK(condition, what)                                                 \
    do {                                                                       \
        if (!(condition)) {                                                    \
            perror(what);                                                      \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static inline void raise_descriptor_limit(void)
{
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

static inline void watch(int queue, int operation, int fd, unsigned events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    CHECK(epoll_ctl(queue, operation, fd, &event) == 0, "epoll_ctl");
}

#endif
