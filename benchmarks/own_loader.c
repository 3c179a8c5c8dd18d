/* The inner loop of own_loader.py: publishes, checks and acknowledges the messages of its streams.
 *
 * A turn reads each connection that has something once and then writes once to each that has something to say. The
 * connections are open and subscribed; everything that is not about messages a second is in Python.
 */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER_SIZE = 256 << 10, /* bytes of a read */
    MAX_EVENTS = 512,        /* connections of a turn */
    MARK_SIZE = 24,          /* a payload begins with stream, number of the message, and when it was sent, in ns */
    STEPS = 64,              /* of the histogram, for each power of two */
    BUCKETS = 64 * STEPS,
};

/* What Python sees of one publisher and its subscriber: `Stream` of own_loader.py. */
struct stream {
    int32_t publisher, subscriber; /* their sockets, which do not block; -1 once the connection is lost */
    uint64_t sent, acknowledged, expected; /* numbers of messages; `expected` is the next one that is to come */
    uint64_t delivered, lost, dup, corrupt;
};

/* What all streams have in common: `Load` of own_loader.py. */
struct load {
    uint32_t qos, credit, window, payload_size;
    uint32_t is_sending;
    uint64_t latencies[BUCKETS];
};

struct connection {
    struct pair *pair;
    int32_t *socket;
    int is_publisher, is_waiting, is_stuck; /* in `to_write`; waits for room in the socket */
    uint8_t *rest, *out;                    /* what is no whole packet yet; what is to be written */
    size_t rest_size, out_begin, out_end, out_room;
};

struct pair {
    struct stream *stream;
    uint64_t index;
    uint8_t *packet; /* a PUBLISH, to be completed */
    size_t packet_size, at_identifier, at_mark;
    struct connection ends[2]; /* publisher, subscriber */
};

struct loop {
    int poll;
    struct load *load;
    size_t pair_count, to_write_count;
    struct pair *pairs;
    struct connection **to_write;
    uint8_t *buffer;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note_latency(struct load *load, uint64_t ns)
{
    unsigned power = ns < STEPS ? 0 : 63u - 6u - (unsigned)__builtin_clzll(ns);
    load->latencies[ns < STEPS ? ns : (power + 1) * STEPS + ((ns >> power) & (STEPS - 1))]++;
}

static void watch(struct loop *loop, struct connection *c, int operation)
{
    struct epoll_event event = {.events = EPOLLIN | (c->is_stuck ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(loop->poll, operation, *c->socket, &event);
}

static void lose(struct loop *loop, struct connection *c)
{
    if (*c->socket >= 0)
        watch(loop, c, EPOLL_CTL_DEL);
    *c->socket = -1;
}

/* Returns where `size` bytes are to be put that are written at the end of the turn. */
static uint8_t *writing(struct loop *loop, struct connection *c, size_t size)
{
    if (!c->is_waiting) {
        c->is_waiting = 1;
        loop->to_write[loop->to_write_count++] = c;
    }
    if (c->out_begin && c->out_end + size > c->out_room) {
        memmove(c->out, c->out + c->out_begin, c->out_end - c->out_begin);
        c->out_end -= c->out_begin;
        c->out_begin = 0;
    }
    if (c->out_end + size > c->out_room) {
        c->out_room = (c->out_end + size) * 2;
        c->out = realloc(c->out, c->out_room);
        if (!c->out)
            abort();
    }
    c->out_end += size;
    return c->out + c->out_end - size;
}

/* Publishes what credit and window allow. */
static void publish(struct loop *loop, struct pair *pair)
{
    struct load *load = loop->load;
    struct stream *s = pair->stream;
    if (!load->is_sending || s->publisher < 0)
        return;
    uint64_t until = s->expected + load->credit;
    if (load->qos && until > s->acknowledged + load->window)
        until = s->acknowledged + load->window;
    uint64_t now = until > s->sent ? now_ns() : 0;
    for (; s->sent < until; s->sent++) {
        uint8_t *packet = writing(loop, &pair->ends[0], pair->packet_size);
        uint64_t mark[3] = {pair->index, s->sent, now};
        uint16_t identifier = (uint16_t)(s->sent % 65535 + 1);
        memcpy(packet, pair->packet, pair->packet_size);
        if (load->qos) {
            packet[pair->at_identifier] = (uint8_t)(identifier >> 8);
            packet[pair->at_identifier + 1] = (uint8_t)identifier;
        }
        memcpy(packet + pair->at_mark, mark, MARK_SIZE);
    }
}

/* Takes PUBACKs, which come in order. Returns how many bytes it took. */
static size_t take_acknowledgements(struct pair *pair, const uint8_t *data, size_t size)
{
    struct stream *s = pair->stream;
    size_t at = 0;
    for (; size - at >= 4; at += 4, s->acknowledged++) {
        uint16_t identifier = (uint16_t)(data[at + 2] << 8 | data[at + 3]);
        if (data[at] != 0x40 || data[at + 1] != 2 || identifier != s->acknowledged % 65535 + 1)
            s->corrupt++;
    }
    return at;
}

/* Checks and acknowledges messages. Returns how many bytes it took. */
static size_t take_messages(struct loop *loop, struct pair *pair, const uint8_t *data, size_t size)
{
    struct stream *s = pair->stream;
    size_t at = 0, after_mark = pair->at_mark + MARK_SIZE;
    uint64_t now = now_ns();
    for (; size - at >= pair->packet_size; at += pair->packet_size) {
        const uint8_t *packet = data + at;
        uint64_t mark[3];
        memcpy(mark, packet + pair->at_mark, MARK_SIZE);
        if (memcmp(packet, pair->packet, pair->at_identifier) ||
            memcmp(packet + after_mark, pair->packet + after_mark, pair->packet_size - after_mark) ||
            mark[0] != pair->index || mark[1] >= s->sent || mark[2] > now) {
            s->corrupt++;
        } else if (mark[1] < s->expected) {
            s->dup++;
        } else {
            s->lost += mark[1] - s->expected;
            s->expected = mark[1] + 1;
            s->delivered++;
            note_latency(loop->load, now - mark[2]);
        }
        if (loop->load->qos) {
            uint8_t *answer = writing(loop, &pair->ends[1], 4);
            answer[0] = 0x40, answer[1] = 2;
            memcpy(answer + 2, packet + pair->at_identifier, 2);
        }
    }
    return at;
}

static void read_some(struct loop *loop, struct connection *c)
{
    memcpy(loop->buffer, c->rest, c->rest_size);
    ssize_t got = read(*c->socket, loop->buffer + c->rest_size, BUFFER_SIZE);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            lose(loop, c);
        return;
    }
    size_t size = c->rest_size + (size_t)got;
    size_t taken = c->is_publisher ? take_acknowledgements(c->pair, loop->buffer, size)
                                   : take_messages(loop, c->pair, loop->buffer, size);
    c->rest_size = size - taken; /* less than a packet */
    memcpy(c->rest, loop->buffer + taken, c->rest_size);
    publish(loop, c->pair);
}

static void write_out(struct loop *loop, struct connection *c)
{
    c->is_waiting = 0;
    if (*c->socket < 0 || c->is_stuck)
        return;
    ssize_t put = write(*c->socket, c->out + c->out_begin, c->out_end - c->out_begin);
    if (put < 0 && errno != EAGAIN && errno != EINTR) {
        lose(loop, c);
        return;
    }
    c->out_begin += put < 0 ? 0 : (size_t)put;
    if (c->out_begin == c->out_end) {
        c->out_begin = c->out_end = 0;
        return;
    }
    c->is_stuck = 1;
    watch(loop, c, EPOLL_CTL_MOD);
}

static int is_complete(const struct loop *loop)
{
    for (size_t i = 0; i < loop->pair_count; i++) {
        const struct stream *s = loop->pairs[i].stream;
        if (s->expected < s->sent || (loop->load->qos && s->acknowledged < s->sent))
            return 0;
    }
    return 1;
}

/* Turns for `seconds`, or until everything that was sent has come. */
void loop_run(struct loop *loop, double seconds, int until_complete)
{
    struct epoll_event events[MAX_EVENTS];
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9), now;
    for (size_t i = 0; i < loop->pair_count; i++)
        publish(loop, &loop->pairs[i]);
    while ((now = now_ns()) < end && !(until_complete && is_complete(loop))) {
        for (size_t i = 0; i < loop->to_write_count; i++)
            write_out(loop, loop->to_write[i]);
        loop->to_write_count = 0;
        int count = epoll_wait(loop->poll, events, MAX_EVENTS, (int)((end - now) / 1000000) + 1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->is_stuck && events[i].events & EPOLLOUT) {
                c->is_stuck = 0;
                watch(loop, c, EPOLL_CTL_MOD);
                writing(loop, c, 0);
            }
            if (*c->socket >= 0 && events[i].events & ~(uint32_t)EPOLLOUT)
                read_some(loop, c);
        }
    }
}

/* Makes a loop of `count` streams, which lives as long as the process. `packets` has the PUBLISH of each, its payload
 * zeros. */
struct loop *loop_new(struct load *load, struct stream *streams, size_t count, uint8_t **packets, size_t *sizes)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        abort();
    loop->load = load;
    loop->poll = epoll_create1(EPOLL_CLOEXEC);
    loop->pair_count = count;
    loop->pairs = calloc(count, sizeof *loop->pairs);
    loop->to_write = calloc(count * 2, sizeof *loop->to_write);
    size_t largest = 0;
    for (size_t i = 0; i < count; i++)
        largest = sizes[i] > largest ? sizes[i] : largest;
    loop->buffer = malloc(BUFFER_SIZE + largest);
    if (loop->poll < 0 || !loop->pairs || !loop->to_write || !loop->buffer)
        abort();
    for (size_t i = 0; i < count; i++) {
        struct pair *pair = &loop->pairs[i];
        pair->stream = &streams[i];
        pair->index = i;
        pair->packet = packets[i];
        pair->packet_size = sizes[i];
        pair->at_mark = sizes[i] - load->payload_size;
        pair->at_identifier = pair->at_mark - (load->qos ? 2 : 0);
        for (int end = 0; end < 2; end++) {
            struct connection *c = &pair->ends[end];
            c->pair = pair;
            c->is_publisher = !end;
            c->socket = end ? &streams[i].subscriber : &streams[i].publisher;
            c->rest = malloc(sizes[i]);
            if (!c->rest)
                abort();
            watch(loop, c, EPOLL_CTL_ADD);
        }
    }
    return loop;
}
