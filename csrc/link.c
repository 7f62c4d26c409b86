/* The link's thread: see link.h. */
#include "link.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "board.h"
#include "futex.h"
#include "own.h"

enum { PIECES = 64, READS_PER_TURN = 4, IDLE_FRAMES = 4 };
static const int64_t ALIVE_NS = 500000000;
enum { ALIVE_PER_TIMEOUT = 3 };
/* How long the thread sleeps on the board's bell before it looks at the sockets: the shorter the more comes in. */
static const int64_t LOOK_MIN_NS = 500000, LOOK_MAX_NS = 50000000;
/* How long it waits for the last bytes of step t to leave, before it looks for step t+1 again. */
static const int64_t FLUSH_LOOK_NS = 1000000;

/* A descriptor of the link's own, closed in a forked child. */
struct link_fd {
    struct own own;
    bool kept;
};

struct peer {
    struct link_fd socket;
    bool broken;
    bool blocked;               /* the socket takes no more */
    int64_t heard_ns, spoke_ns; /* when something last came, and went */
    shared_u64 sent, received;  /* bytes; writer: the thread */
    struct frame_output output;
    struct frame_input input;
};

enum request { REQUEST_NONE = 0, REQUEST_BEGIN, REQUEST_END, REQUEST_CLOSE };

struct link {
    uint32_t index, count;
    int64_t timeout_ns, alive_ns;
    pid_t pid;
    pthread_t thread;
    struct link_fd wake, alarm; /* eventfds: for the thread; for the caller, once there is a problem */
    pthread_mutex_t calls;      /* one caller at a time, and guards the following */
    struct exchange *session;
    void *owner;          /* of the session's board: for the caller */
    uint64_t highest;     /* session */
    bool stopped;         /* the thread has ended */
    pthread_mutex_t lock; /* guards the following */
    pthread_cond_t answered;
    enum request request;
    struct exchange *given;       /* of BEGIN */
    int64_t deadline_ns;          /* of END */
    int answer;                   /* an errno, or 0 */
    const struct board *attached; /* the board that the thread may sleep on; NULL if there is none */
    struct link_problem problem;
    /* the thread's */
    struct exchange *exchange; /* NULL between sessions */
    uint64_t newest;           /* session */
    bool failed;               /* the session cannot go on, through a fault of this node */
    bool ending;
    int64_t look_ns, waiting_ns; /* waiting_ns: since when it waits for peers; 0: it does not */
    struct pollfd *polls;
    shared_u64 steps, wait_ns; /* writer: the thread */
    struct peer *peers[];
};

static void counter_add(shared_u64 *counter, uint64_t value)
{
    shared_store_relaxed(counter, shared_load_relaxed(counter) + value);
}

static void event_ring(int fd)
{
    const uint64_t one = 1;
    (void)!write(fd, &one, sizeof one); /* full: it is readable already */
}

/* -- problems
 * -------------------------------------------------------------------------------------------------------- */

static void problem_report(struct link *link, uint32_t peer, enum link_trouble trouble, int error, const char *text)
{
    pthread_mutex_lock(&link->lock);
    if (link->problem.trouble == LINK_FINE) {
        link->problem = (struct link_problem){.trouble = trouble, .peer = peer, .error = error};
        snprintf(link->problem.text, sizeof link->problem.text, "%s", text);
        event_ring(link->alarm.own.fd);
    }
    pthread_mutex_unlock(&link->lock);
}

static void peer_break(struct link *link, uint32_t index, enum link_trouble trouble, int error, const char *text)
{
    struct peer *peer = link->peers[index];
    if (peer->broken)
        return;
    peer->broken = true;
    peer->output.count = 0;
    shutdown(peer->socket.own.fd, SHUT_RDWR); /* it cannot be understood any more, and the peer should know */
    problem_report(link, index, trouble, error, text);
}

static bool error_is_close(int error) { return error == ECONNRESET || error == EPIPE || error == ESHUTDOWN; }

static void peer_break_os(struct link *link, uint32_t index, int error, const char *what)
{
    char text[160];
    snprintf(text, sizeof text, "%s: %s", what, strerror(error));
    peer_break(link, index, error_is_close(error) ? LINK_CLOSED : LINK_OS, error, text);
}

/* -- sending
 * --------------------------------------------------------------------------------------------------------- */

static void sink_send(void *self, uint32_t index, struct frame frame, const uint8_t *bytes)
{
    struct link *link = self;
    struct peer *peer = link->peers[index];
    if (!peer->broken && !frame_output_add(&peer->output, frame, bytes))
        peer_break(link, index, LINK_OS, ENOBUFS, "more frames than a step has");
}

static void peer_flush(struct link *link, uint32_t index)
{
    struct peer *peer = link->peers[index];
    while (peer->output.count > 0 && !peer->broken) {
        struct iovec pieces[PIECES];
        struct msghdr message = {.msg_iov = pieces};
        message.msg_iovlen = (size_t)frame_output_pieces(&peer->output, pieces, PIECES);
        const ssize_t sent = sendmsg(peer->socket.own.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            peer->blocked = errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS;
            if (!peer->blocked)
                peer_break_os(link, index, errno, "send");
            return;
        }
        counter_add(&peer->sent, (uint64_t)sent);
        peer->spoke_ns = clock_monotonic_ns();
        frame_output_sent(&peer->output, (size_t)sent);
    }
    peer->blocked = false;
}

static void flush_all(struct link *link)
{
    for (uint32_t i = 1; i < link->count; i++) {
        const uint32_t index = (link->index + i) % link->count;
        if (!link->peers[index]->blocked)
            peer_flush(link, index);
    }
}

static bool all_is_flushed(const struct link *link)
{
    for (uint32_t i = 0; i < link->count; i++)
        if (link->peers[i] != NULL && link->peers[i]->output.count > 0)
            return false;
    return true;
}

/* -- receiving
 * ------------------------------------------------------------------------------------------------------- */

static enum frame_verdict link_accept(void *self, uint32_t peer, const struct frame *frame, uint8_t **into,
                                      const char **error)
{
    struct link *link = self;
    const struct exchange *exchange = link->exchange;
    if (frame->kind == FRAME_ALIVE)
        return FRAME_DROP;
    if (frame->session > link->newest)
        return FRAME_PARK;
    if (exchange == NULL || frame->session < exchange->session || link->ending || link->failed)
        return FRAME_DROP;
    return exchange_accept(link->exchange, peer, frame, into, error);
}

static void link_arrived(void *self, uint32_t peer, const struct frame *frame)
{
    exchange_arrived(((struct link *)self)->exchange, peer, frame);
}

static struct frame_user user_of(struct link *link, uint32_t peer)
{
    return (struct frame_user){.accept = link_accept, .arrived = link_arrived, .self = link, .peer = peer};
}

/* Read what is there, or the greater part of it. Returns whether anything came. */
static bool peer_read(struct link *link, uint32_t index)
{
    struct peer *peer = link->peers[index];
    const struct frame_user user = user_of(link, index);
    bool any = false;
    for (int i = 0; i < READS_PER_TURN && !peer->broken; i++) {
        const struct iovec room = frame_input_room(&peer->input);
        if (room.iov_len == 0)
            break;
        const ssize_t came = recv(peer->socket.own.fd, room.iov_base, room.iov_len, MSG_DONTWAIT);
        if (came < 0 && errno == EINTR)
            continue;
        if (came < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (came < 0) {
            peer_break_os(link, index, errno, "receive");
        } else if (came == 0) {
            peer_break(link, index, LINK_CLOSED, 0, "the peer closed the connection");
        } else {
            any = true;
            counter_add(&peer->received, (uint64_t)came);
            peer->heard_ns = clock_monotonic_ns();
            if (!frame_input_took(&peer->input, (size_t)came, &user))
                peer_break(link, index, LINK_GARBAGE, 0, peer->input.error);
            if ((size_t)came < room.iov_len)
                break; /* nothing is left */
        }
    }
    return any;
}

/* The link got to where the frames belong that wait. */
static void peers_resume(struct link *link)
{
    for (uint32_t i = 0; i < link->count; i++) {
        struct peer *peer = link->peers[i];
        if (peer == NULL || peer->broken || !peer->input.parked)
            continue;
        const struct frame_user user = user_of(link, i);
        peer->heard_ns = clock_monotonic_ns();
        if (!frame_input_resume(&peer->input, &user))
            peer_break(link, i, LINK_GARBAGE, 0, peer->input.error);
    }
}

/* -- signs of life
 * --------------------------------------------------------------------------------------------------- */

/* A peer whose frames wait is not read, so it cannot be heard. */
static void silence_check(struct link *link, int64_t now_ns)
{
    for (uint32_t i = 0; i < link->count; i++) {
        struct peer *peer = link->peers[i];
        if (peer == NULL || peer->broken || peer->input.parked || now_ns - peer->heard_ns <= link->timeout_ns)
            continue;
        if (peer_read(link, i) || peer->broken)
            continue; /* this process itself was stopped */
        char text[100];
        snprintf(text, sizeof text, "nothing came for %.1f s", (double)(now_ns - peer->heard_ns) * 1e-9);
        peer_break(link, i, LINK_SILENT, 0, text);
    }
}

static void alive_send(struct link *link, int64_t now_ns)
{
    for (uint32_t i = 0; i < link->count; i++) {
        struct peer *peer = link->peers[i];
        if (peer == NULL || peer->broken || now_ns - peer->spoke_ns < link->alive_ns || peer->output.count > 0)
            continue;
        peer->spoke_ns = now_ns;
        frame_output_add(&peer->output, frame_make(FRAME_ALIVE, 0, 0, 0, 0, 0), NULL);
        peer_flush(link, i);
    }
}

/* -- steps
 * ----------------------------------------------------------------------------------------------------------- */

static void step_start(struct link *link)
{
    const struct exchange_sink sink = {sink_send, link};
    const int64_t shard = exchange_start(link->exchange, &sink);
    if (shard >= 0) {
        char text[100];
        snprintf(text, sizeof text, "shard %d has another number of examples than the table says", (int)shard);
        problem_report(link, link->index, LINK_GARBAGE, 0, text);
        link->failed = true;
        return;
    }
    peers_resume(link);
}

static void step_finish(struct link *link)
{
    exchange_finish(link->exchange);
    counter_add(&link->steps, 1);
    if (link->waiting_ns != 0)
        counter_add(&link->wait_ns, (uint64_t)(clock_monotonic_ns() - link->waiting_ns));
    link->waiting_ns = 0;
    peers_resume(link);
}

/* Do a piece of the step's work; false if there is none before something happens. */
static bool step_work(struct link *link)
{
    struct exchange *exchange = link->exchange;
    if (exchange == NULL || link->failed || link->ending)
        return false;
    if (!exchange->started) {
        if (!exchange_is_due(exchange) || !all_is_flushed(link))
            return false;
        step_start(link);
        if (link->failed)
            return false;
    }
    const struct exchange_sink sink = {sink_send, link};
    const bool worked = exchange_work(exchange, &sink);
    if (exchange_is_complete(exchange)) {
        flush_all(link); /* before the workers: the peers are waiting */
        step_finish(link);
        return true;
    }
    if (!worked && link->waiting_ns == 0 && exchange_is_waiting(exchange))
        link->waiting_ns = clock_monotonic_ns();
    return worked;
}

/* -- requests
 * -------------------------------------------------------------------------------------------------------- */

/* Answer the caller; from then on the thread sleeps on this board's bell, or on none. */
static void request_answer(struct link *link, const struct board *attached, int answer)
{
    pthread_mutex_lock(&link->lock);
    link->attached = attached;
    link->request = REQUEST_NONE;
    link->answer = answer;
    pthread_cond_broadcast(&link->answered);
    pthread_mutex_unlock(&link->lock);
}

/* Return 0, or an errno. */
static int session_begin(struct link *link, struct exchange *exchange)
{
    const uint32_t frames = exchange_frames_max(exchange) + IDLE_FRAMES;
    for (uint32_t i = 0; i < link->count; i++) {
        struct peer *peer = link->peers[i];
        if (peer == NULL)
            continue;
        if (peer->broken)
            return EPIPE;
        if (!frame_output_make(&peer->output, frames))
            return ENOMEM;
    }
    link->exchange = exchange;
    link->newest = exchange->session;
    link->failed = false;
    link->waiting_ns = 0;
    link->look_ns = LOOK_MIN_NS;
    return 0;
}

/* What comes from now on is forgotten, the rest of a frame too. */
static void session_forget(struct link *link)
{
    link->ending = true;
    for (uint32_t i = 0; i < link->count; i++)
        if (link->peers[i] != NULL)
            frame_input_forget(&link->peers[i]->input);
}

/* Let go of the session's memory. Returns whether all was sent. */
static bool session_end(struct link *link)
{
    const bool sent = all_is_flushed(link);
    for (uint32_t i = 0; i < link->count; i++)
        if (link->peers[i] != NULL && !frame_output_forget(&link->peers[i]->output))
            peer_break(link, i, LINK_OS, ENOMEM, "no memory for the rest of a frame");
    link->exchange = NULL;
    link->ending = false;
    return sent;
}

/* Take a request; false if the thread is to end. */
static bool request_take(struct link *link, int64_t now_ns)
{
    pthread_mutex_lock(&link->lock);
    const enum request request = link->request;
    struct exchange *given = request == REQUEST_BEGIN ? link->given : NULL;
    pthread_mutex_unlock(&link->lock);
    if (request == REQUEST_BEGIN) {
        const int error = session_begin(link, given);
        if (error == 0)
            peers_resume(link);
        request_answer(link, error == 0 ? &given->board : NULL, error);
    } else if (request == REQUEST_END) {
        if (!link->ending) {
            session_forget(link);
            peers_resume(link); /* frames of this session that wait are forgotten as well */
        }
        if (all_is_flushed(link) || now_ns >= link->deadline_ns)
            request_answer(link, NULL, session_end(link) ? 0 : ETIMEDOUT);
    }
    return request != REQUEST_CLOSE;
}

/* -- sleeping
 * -------------------------------------------------------------------------------------------------------- */

/* Look at the sockets, at most until so long; returns whether anything came. */
static bool sockets_poll(struct link *link, int64_t timeout_ns)
{
    nfds_t count = 1;
    bool any = false;
    link->polls[0] = (struct pollfd){.fd = link->wake.own.fd, .events = POLLIN};
    for (uint32_t i = 0; i < link->count; i++) {
        const struct peer *peer = link->peers[i];
        const short in = peer != NULL && !peer->input.parked ? POLLIN : 0,
                    out = peer != NULL && peer->blocked ? POLLOUT : 0;
        if (peer == NULL || peer->broken || (in == 0 && out == 0))
            link->polls[count++] = (struct pollfd){.fd = -1};
        else
            link->polls[count++] = (struct pollfd){.fd = peer->socket.own.fd, .events = (short)(in | out)};
    }
    const struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    const int ready = ppoll(link->polls, count, &timeout, NULL);
    if (ready <= 0)
        return false;
    if (link->polls[0].revents != 0) {
        uint64_t rings;
        (void)!read(link->wake.own.fd, &rings, sizeof rings);
    }
    for (uint32_t i = 0; i < link->count; i++) {
        const short events = link->polls[i + 1].revents;
        if (link->polls[i + 1].fd < 0 || events == 0)
            continue;
        if (events & POLLOUT)
            link->peers[i]->blocked = false;
        if (events & (POLLIN | POLLHUP | POLLERR | POLLNVAL))
            any |= peer_read(link, i);
    }
    return any;
}

/* Own shards are missing: sleep on the bell, and look at the sockets. */
static void bell_sleep(struct link *link, uint32_t seen)
{
    struct board_header *header = link->exchange->board.header;
    const bool rung = shared_load_acquire(&header->link_bell) != seen ||
                      futex_sleep(&header->link_bell, seen, &header->link_sleepers, link->look_ns) == FUTEX_CHANGED;
    if (rung)
        return;
    if (sockets_poll(link, 0))
        link->look_ns = LOOK_MIN_NS;
    else if (link->look_ns < LOOK_MAX_NS)
        link->look_ns *= 2;
}

static int64_t alive_left(const struct link *link, int64_t now_ns)
{
    int64_t left_ns = link->alive_ns;
    for (uint32_t i = 0; i < link->count; i++) {
        const struct peer *peer = link->peers[i];
        if (peer != NULL && !peer->broken && peer->spoke_ns + link->alive_ns - now_ns < left_ns)
            left_ns = peer->spoke_ns + link->alive_ns - now_ns;
    }
    return left_ns < FLUSH_LOOK_NS ? FLUSH_LOOK_NS : left_ns;
}

static void rest(struct link *link, uint32_t seen, int64_t now_ns)
{
    const struct exchange *exchange = link->exchange;
    const bool waits_for_workers = exchange != NULL && !exchange->started && !link->failed && !link->ending;
    if (waits_for_workers && all_is_flushed(link)) {
        bell_sleep(link, seen);
        return;
    }
    int64_t timeout_ns = waits_for_workers ? FLUSH_LOOK_NS : alive_left(link, now_ns);
    if (link->ending && link->deadline_ns - now_ns < timeout_ns)
        timeout_ns = link->deadline_ns > now_ns ? link->deadline_ns - now_ns : 0;
    sockets_poll(link, timeout_ns);
}

static void *link_run(void *argument)
{
    struct link *link = argument;
    for (;;) {
        int64_t now_ns = clock_monotonic_ns();
        if (!request_take(link, now_ns))
            return NULL;
        /* before looking: a change after it ends the sleep at once */
        const uint32_t seen =
            link->exchange == NULL ? 0 : shared_load_acquire(&link->exchange->board.header->link_bell);
        const bool worked = step_work(link);
        flush_all(link);
        alive_send(link, now_ns);
        silence_check(link, now_ns);
        if (worked)
            sockets_poll(link, 0);
        else
            rest(link, seen, now_ns);
    }
}

/* -- the callers
 * ----------------------------------------------------------------------------------------------------- */

bool link_is_forked(const struct link *link) { return link->pid != getpid(); }
int link_fileno(const struct link *link) { return link->alarm.own.fd; }
uint32_t link_nodes(const struct link *link) { return link->count; }
uint32_t link_index(const struct link *link) { return link->index; }

static bool fd_keep(struct link_fd *at, int fd)
{
    at->own = (struct own){.fd = fd};
    at->kept = fd >= 0;
    if (at->kept)
        own_add(&at->own);
    return at->kept;
}

static void fd_drop(struct link_fd *at)
{
    if (!at->kept)
        return;
    own_remove(&at->own); /* which closed it, if this is a forked child */
    if (at->own.fd >= 0 && descriptor_is(at->own.fd, &at->own.file))
        close(at->own.fd);
}

static void memory_free(struct link *link)
{
    for (uint32_t i = 0; i < link->count; i++)
        if (link->peers[i] != NULL) {
            fd_drop(&link->peers[i]->socket);
            frame_output_free(&link->peers[i]->output);
            free(link->peers[i]);
        }
    fd_drop(&link->wake);
    fd_drop(&link->alarm);
    free(link->polls);
    free(link);
}

static bool peer_open(struct link *link, uint32_t index, int fd)
{
    struct peer *peer = link->peers[index] = calloc(1, sizeof *peer);
    if (peer == NULL || !frame_output_make(&peer->output, IDLE_FRAMES) ||
        !fd_keep(&peer->socket, fcntl(fd, F_DUPFD_CLOEXEC, DESCRIPTOR_FIRST)))
        return false;
    const int yes = 1;
    setsockopt(peer->socket.own.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* not every socket is of TCP */
    peer->heard_ns = peer->spoke_ns = clock_monotonic_ns();
    return true;
}

/* No signal of the program is handled in the link's thread. */
static int thread_start(struct link *link)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&link->thread, NULL, link_run, link);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

struct link *link_open(uint32_t index, const int *sockets, uint32_t count, int64_t timeout_ns)
{
    struct link *link = calloc(1, sizeof *link + count * sizeof *link->peers);
    if (link == NULL)
        return NULL;
    link->index = index;
    link->count = count;
    link->timeout_ns = timeout_ns;
    link->alive_ns = timeout_ns / ALIVE_PER_TIMEOUT < ALIVE_NS ? timeout_ns / ALIVE_PER_TIMEOUT : ALIVE_NS;
    link->pid = getpid();
    pthread_mutex_init(&link->calls, NULL);
    pthread_mutex_init(&link->lock, NULL);
    pthread_cond_init(&link->answered, NULL);
    link->polls = calloc(count + (size_t)1, sizeof *link->polls);
    bool made = link->polls != NULL && fd_keep(&link->wake, descriptor_keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) &&
                fd_keep(&link->alarm, descriptor_keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
    for (uint32_t i = 0; made && i < count; i++)
        made = i == index || peer_open(link, i, sockets[i]);
    if (made) {
        errno = thread_start(link);
        made = errno == 0;
    }
    if (!made) {
        const int error = errno;
        memory_free(link);
        errno = error;
        return NULL;
    }
    return link;
}

/* Make a request, and wait for the answer. The thread sleeps in poll, or on the bell of the board. */
static int request_make(struct link *link, enum request request)
{
    pthread_mutex_lock(&link->lock);
    link->request = request;
    event_ring(link->wake.own.fd);
    if (link->attached != NULL)
        board_ring_link(link->attached);
    while (link->request != REQUEST_NONE && request != REQUEST_CLOSE)
        pthread_cond_wait(&link->answered, &link->lock);
    const int answer = link->answer;
    pthread_mutex_unlock(&link->lock);
    return answer;
}

static void session_free(struct link *link)
{
    if (link->session == NULL)
        return;
    exchange_free(link->session);
    free(link->session);
    link->session = NULL;
}

static enum status begin_locked(struct link *link, const struct board *board, struct exchange_plan *plan,
                                uint64_t session, void *owner, uint64_t *step)
{
    if (link->session != NULL)
        return STATUS_BUSY;
    if (session <= link->highest)
        return STATUS_OTHER;
    errno = EBADF;
    if (link->stopped)
        return STATUS_OS;
    if (link->count > 1)
        board_set_linked(board); /* before its first incomplete step is looked for */
    link->session = malloc(sizeof *link->session);
    errno = ENOMEM;
    if (link->session == NULL || exchange_make(link->session, board, plan, session) != STATUS_OK) {
        free(link->session);
        link->session = NULL;
        return STATUS_OS;
    }
    *step = link->session->step;
    link->given = link->session;
    errno = request_make(link, REQUEST_BEGIN);
    if (errno != 0) {
        const int error = errno;
        session_free(link);
        errno = error;
        return STATUS_OS;
    }
    link->highest = session;
    link->owner = owner;
    return STATUS_OK;
}

enum status link_begin(struct link *link, const struct board *board, struct exchange_plan *plan, uint64_t session,
                       void *owner, uint64_t *step)
{
    pthread_mutex_lock(&link->calls);
    const enum status status = begin_locked(link, board, plan, session, owner, step);
    const int error = errno;
    pthread_mutex_unlock(&link->calls);
    errno = error;
    return status;
}

static void *owner_take(struct link *link)
{
    void *owner = link->owner;
    link->owner = NULL;
    return owner;
}

bool link_end(struct link *link, int64_t timeout_ns, void **owner)
{
    bool sent = true;
    *owner = NULL;
    pthread_mutex_lock(&link->calls);
    if (link->session != NULL) {
        link->deadline_ns = clock_monotonic_ns() + timeout_ns;
        sent = request_make(link, REQUEST_END) == 0;
        session_free(link);
        *owner = owner_take(link);
    }
    pthread_mutex_unlock(&link->calls);
    return sent;
}

void *link_stop(struct link *link)
{
    if (link_is_forked(link))
        return NULL;
    pthread_mutex_lock(&link->calls);
    if (!link->stopped) {
        request_make(link, REQUEST_CLOSE);
        pthread_join(link->thread, NULL);
        link->stopped = true;
        for (uint32_t i = 0; i < link->count; i++)
            if (link->peers[i] != NULL) {
                fd_drop(&link->peers[i]->socket);
                link->peers[i]->socket.kept = false;
            }
        session_free(link);
    }
    void *owner = owner_take(link);
    pthread_mutex_unlock(&link->calls);
    return owner;
}

void *link_free(struct link *link)
{
    void *owner = link_is_forked(link) ? owner_take(link) : link_stop(link);
    session_free(link);
    memory_free(link);
    return owner;
}

struct link_problem link_problem(struct link *link)
{
    pthread_mutex_lock(&link->lock);
    const struct link_problem problem = link->problem;
    pthread_mutex_unlock(&link->lock);
    return problem;
}

struct link_counters link_counters(const struct link *link, uint32_t peer)
{
    const struct peer *at = link->peers[peer];
    if (at == NULL)
        return (struct link_counters){0, 0};
    return (struct link_counters){shared_load_relaxed(&at->sent), shared_load_relaxed(&at->received)};
}

struct link_totals link_totals(const struct link *link)
{
    return (struct link_totals){shared_load_relaxed(&link->steps), shared_load_relaxed(&link->wait_ns)};
}
