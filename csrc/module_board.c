/* Board: see module.h. */
#include "module.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board.h"
#include "futex.h"
#include "own.h"
#include "space.h"

typedef struct {
    PyObject_HEAD
    struct core *core; /* here, since the object may be of a derived class */
    struct board board;
    struct own own; /* the mapping; a forked child's is a copy */
    struct board_run run;
} BoardObject;

const struct board *board_of(PyObject *object) { return &((BoardObject *)object)->board; }

static PyObject *Board_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int fd;
    struct stat stat;
    struct core *core = core_of_class(type);
    if (core == NULL || !PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    if (fstat(fd, &stat) != 0 || (fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)) < 0)
        return status_raise(core, STATUS_OS);
    void *memory = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        status_raise(core, STATUS_OS);
        close(fd);
        return NULL;
    }
    struct board board;
    BoardObject *self = NULL;
    enum status status = board_attach(&board, memory, (uint64_t)stat.st_size);
    if (status == STATUS_OK)
        self = (BoardObject *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    else
        status_raise(core, status);
    if (self == NULL) {
        munmap(memory, (size_t)stat.st_size);
        close(fd);
        return NULL;
    }
    self->core = core;
    self->board = board;
    self->own = (struct own){.memory = memory, .nbytes = (uint64_t)stat.st_size, .fd = fd};
    self->run = (struct board_run){.kind = RUN_IDLE};
    own_add(&self->own);
    return (PyObject *)self;
}

static void Board_dealloc(PyObject *self)
{
    BoardObject *board = (BoardObject *)self;
    own_remove(&board->own);
    munmap(board->own.memory, board->own.nbytes);
    if (descriptor_is(board->own.fd, &board->own.file))
        close(board->own.fd);
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self); /* a class made from this one has its own */
    Py_DECREF(type);
}

static int Board_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    BoardObject *board = (BoardObject *)self;
    return PyBuffer_FillInfo(view, self, board->own.memory, (Py_ssize_t)board->own.nbytes, 0, flags);
}

static PyObject *Board_next(PyObject *self, PyObject *args)
{
    BoardObject *board = (BoardObject *)self;
    PyObject *weights;
    unsigned worker;
    int spin;
    double wait_s;
    if (!PyArg_ParseTuple(args, "O!Ipd", board->core->attachment_type, &weights, &worker, &spin, &wait_s))
        return NULL;
    if (worker >= board->board.header->workers) {
        PyErr_Format(PyExc_ValueError, "worker %u: the board has %u", worker, board->board.header->workers);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    board->run = board_next(&board->board, ((AttachmentObject *)weights)->attachment, worker, spin != 0,
                            (int64_t)(wait_s * 1e9));
    Py_END_ALLOW_THREADS
    const struct board_run *run = &board->run;
    const uint8_t *buffer = (const uint8_t *)board_buffer_at(&board->board, run->buffer);
    return Py_BuildValue("(iKIK)", (int)run->kind, (unsigned long long)run->step, run->shard,
                         (unsigned long long)(buffer - (const uint8_t *)board->own.memory));
}

static PyObject *Board_commit(PyObject *self, PyObject *argument)
{
    BoardObject *board = (BoardObject *)self;
    unsigned long worker = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (board->run.kind != RUN_GRADIENT || worker >= board->board.header->workers) {
        PyErr_SetString(PyExc_ValueError, "commit: no gradient task was taken");
        return NULL;
    }
    bool counts = board_commit(&board->board, (uint32_t)worker, &board->run);
    board->run.kind = RUN_IDLE;
    return PyBool_FromLong(counts);
}

static PyObject *Board_refuse(PyObject *self, PyObject *args)
{
    BoardObject *board = (BoardObject *)self;
    unsigned worker;
    int error;
    if (!PyArg_ParseTuple(args, "Ii", &worker, &error))
        return NULL;
    if (board->run.kind != RUN_GRADIENT || worker >= board->board.header->workers) {
        PyErr_SetString(PyExc_ValueError, "refuse: no gradient task was taken");
        return NULL;
    }
    board_refuse(&board->board, worker, &board->run, error);
    board->run.kind = RUN_IDLE;
    Py_RETURN_NONE;
}

static PyObject *Board_still_claimed(PyObject *self, PyObject *unused)
{
    BoardObject *board = (BoardObject *)self;
    return PyBool_FromLong(board->run.kind == RUN_GRADIENT && board_still_claimed(&board->board, &board->run));
}

static PyObject *Board_fail(PyObject *self, PyObject *argument)
{
    struct board_header *header = ((BoardObject *)self)->board.header;
    unsigned long worker = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    shared_swap_if_u32(&header->failed, 0, (uint32_t)worker + 1); /* pairs with the server's shared_load_acquire */
    board_ring_server(&((BoardObject *)self)->board);
    Py_RETURN_NONE;
}

static PyObject *Board_agree(PyObject *self, PyObject *argument)
{
    shared_u32 *names = &((BoardObject *)self)->board.header->names;
    unsigned long checksum = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (checksum == 0 || checksum > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "agree: %lu is no checksum", checksum);
        return NULL;
    }
    /* nothing is read because of this word, so its order does not matter */
    return PyBool_FromLong(shared_swap_if_u32(names, 0, (uint32_t)checksum) ||
                           shared_load_relaxed(names) == (uint32_t)checksum);
}

/* Steps and batches are 32 bits of a task's word. */
static bool step_check(unsigned long long step)
{
    if (step <= UINT32_MAX)
        return true;
    PyErr_Format(PyExc_OverflowError, "step %llu: a board counts to %lu", step, (unsigned long)UINT32_MAX);
    return false;
}

static PyObject *Board_set_limit(PyObject *self, PyObject *argument)
{
    unsigned long long limit = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred() || !step_check(limit))
        return NULL;
    board_set_limit(&((BoardObject *)self)->board, limit);
    Py_RETURN_NONE;
}

static PyObject *Board_stop(PyObject *self, PyObject *unused)
{
    board_stop(&((BoardObject *)self)->board);
    Py_RETURN_NONE;
}

static bool workers_check(const struct board *board, unsigned long workers)
{
    if (workers <= board->header->workers)
        return true;
    PyErr_Format(PyExc_ValueError, "%lu workers: the board has room for %u", workers, board->header->workers);
    return false;
}

static PyObject *Board_set_workers(PyObject *self, PyObject *args)
{
    const struct board *board = &((BoardObject *)self)->board;
    unsigned active;
    double spin_s;
    if (!PyArg_ParseTuple(args, "Id", &active, &spin_s) || !workers_check(board, active))
        return NULL;
    board_set_workers(board, active, (int64_t)(spin_s * 1e9));
    Py_RETURN_NONE;
}

static PyObject *Board_set_own(PyObject *self, PyObject *args)
{
    const struct board *board = &((BoardObject *)self)->board;
    unsigned first, end;
    if (!PyArg_ParseTuple(args, "II", &first, &end))
        return NULL;
    if (!board->header->exchange) {
        PyErr_SetString(PyExc_ValueError, "set_own: the board was made without exchange, so all shards are its own");
        return NULL;
    }
    if (first > end || end > board->header->shards) {
        PyErr_Format(PyExc_ValueError, "set_own: shards %u to %u: the board has %u", first, end, board->header->shards);
        return NULL;
    }
    board_set_own(board, first, end);
    Py_RETURN_NONE;
}

static PyObject *Board_nbytes_used(PyObject *self, PyObject *argument)
{
    const struct board *board = &((BoardObject *)self)->board;
    unsigned long workers = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred() || !workers_check(board, workers))
        return NULL;
    return PyLong_FromUnsignedLongLong(board_nbytes_used(board->header, (uint32_t)workers));
}

static bool worker_parse(const struct board *board, PyObject *argument, uint32_t *worker)
{
    unsigned long number = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return false;
    if (number >= board->header->workers) {
        PyErr_Format(PyExc_ValueError, "worker %lu: the board has %u", number, board->header->workers);
        return false;
    }
    *worker = (uint32_t)number;
    return true;
}

static PyObject *Board_recover(PyObject *self, PyObject *argument)
{
    const struct board *board = &((BoardObject *)self)->board;
    uint32_t worker;
    return worker_parse(board, argument, &worker) ? PyLong_FromLongLong(board_recover(board, worker)) : NULL;
}

static PyObject *Board_give_up(PyObject *self, PyObject *argument)
{
    const struct board *board = &((BoardObject *)self)->board;
    uint32_t worker;
    return worker_parse(board, argument, &worker) ? PyLong_FromLongLong(board_give_up(board, worker)) : NULL;
}

static PyObject *Board_holds_range(PyObject *self, PyObject *argument)
{
    const struct board *board = &((BoardObject *)self)->board;
    uint32_t worker;
    return worker_parse(board, argument, &worker) ? PyBool_FromLong(board_holds_range(board, worker)) : NULL;
}

static bool inflight_check(const struct board *board, unsigned long index)
{
    if (board->header->is_async && index < board->header->shards)
        return true;
    PyErr_Format(PyExc_ValueError, "in-flight batch %lu: the board has %u", index,
                 board->header->is_async ? board->header->shards : 0);
    return false;
}

static PyObject *Board_inflight_open(PyObject *self, PyObject *args)
{
    const struct board *board = &((BoardObject *)self)->board;
    unsigned index;
    unsigned long long batch;
    if (!PyArg_ParseTuple(args, "IK", &index, &batch) || !inflight_check(board, index) || !step_check(batch))
        return NULL;
    return PyBool_FromLong(inflight_open(board, index, batch));
}

static PyObject *Board_in_flight(PyObject *self, PyObject *argument)
{
    const struct board *board = &((BoardObject *)self)->board;
    unsigned long number = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred() || !inflight_check(board, number))
        return NULL;
    const struct inflight found = inflight_look(board, (uint32_t)number);
    const uint8_t *buffer = (const uint8_t *)board_buffer_at(board, found.buffer);
    return Py_BuildValue("(iKKK)", (int)found.state, (unsigned long long)found.batch, (unsigned long long)found.version,
                         (unsigned long long)(buffer - (const uint8_t *)board->header));
}

static bool inflight_check_done(const struct board *board, unsigned long index)
{
    if (!inflight_check(board, index))
        return false;
    if (inflight_look(board, (uint32_t)index).state == TASK_DONE)
        return true;
    PyErr_Format(PyExc_ValueError, "in-flight batch %lu: it has no gradient", index);
    return false;
}

static PyObject *Board_inflight_empty(PyObject *self, PyObject *argument)
{
    const struct board *board = &((BoardObject *)self)->board;
    unsigned long index = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred() || !inflight_check_done(board, index))
        return NULL;
    inflight_empty(board, (uint32_t)index);
    Py_RETURN_NONE;
}

static PyObject *Board_inflight_apply(PyObject *self, PyObject *args)
{
    const struct board *board = &((BoardObject *)self)->board;
    const struct core *core = ((BoardObject *)self)->core;
    PyObject *weights;
    unsigned index;
    unsigned long long step, staleness;
    if (!PyArg_ParseTuple(args, "O!IKK", core->attachment_type, &weights, &index, &step, &staleness) ||
        !inflight_check_done(board, index))
        return NULL;
    enum status status;
    Py_BEGIN_ALLOW_THREADS
    status = inflight_apply(board, ((AttachmentObject *)weights)->attachment, index, step, staleness);
    Py_END_ALLOW_THREADS
    if (status != STATUS_OK)
        return status_raise(core, status);
    Py_RETURN_NONE;
}

static PyObject *Board_slot_ready(PyObject *self, PyObject *unused)
{
    shared_store_release(&((BoardObject *)self)->board.header->need_slot, 0);
    board_ring(&((BoardObject *)self)->board);
    Py_RETURN_NONE;
}

static PyObject *Board_ring_server(PyObject *self, PyObject *unused)
{
    board_ring_server(&((BoardObject *)self)->board);
    Py_RETURN_NONE;
}

static PyObject *Board_wait_server(PyObject *self, PyObject *args)
{
    struct board_header *header = ((BoardObject *)self)->board.header;
    unsigned seen;
    double timeout_s;
    if (!PyArg_ParseTuple(args, "Id", &seen, &timeout_s))
        return NULL;
    enum futex_result result = FUTEX_CHANGED;
    Py_BEGIN_ALLOW_THREADS
    if (shared_load_acquire(&header->server_bell) == seen)
        result = futex_sleep(&header->server_bell, seen, &header->server_sleepers, (int64_t)(timeout_s * 1e9));
    Py_END_ALLOW_THREADS
    if (result == FUTEX_INTERRUPTED && PyErr_CheckSignals() != 0)
        return NULL;
    return PyLong_FromUnsignedLong(shared_load_acquire(&header->server_bell));
}

/* Gradients committed by each worker. */
static PyObject *commits_make(const struct board *board)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < board->header->workers; i++)
        if (!list_append_new(list, PyLong_FromUnsignedLongLong(shared_load_relaxed(&board->workers[i].commits))))
            Py_CLEAR(list);
    return list;
}

#define BOARD_FIELDS(FIELD)                                                                                    \
    FIELD(Board, step, PyLong_FromUnsignedLongLong, board_step(&self->board))                                  \
    FIELD(Board, incomplete_step, PyLong_FromUnsignedLongLong, board_incomplete_step(&self->board))            \
    FIELD(Board, own_first, PyLong_FromUnsignedLong, own_first(shared_load_acquire(&self->board.header->own))) \
    FIELD(Board, own_end, PyLong_FromUnsignedLong, own_end(shared_load_acquire(&self->board.header->own)))     \
    FIELD(Board, need_slot, PyLong_FromUnsignedLong, shared_load_acquire(&self->board.header->need_slot))      \
    FIELD(Board, failed, PyLong_FromUnsignedLong, shared_load_acquire(&self->board.header->failed))            \
    FIELD(Board, stopped, PyLong_FromUnsignedLong, shared_load_acquire(&self->board.header->stop))             \
    FIELD(Board, active, PyLong_FromUnsignedLong, shared_load_acquire(&self->board.header->active))            \
    FIELD(Board, refused, PyLong_FromLong, board_refused(&self->board))                                        \
    FIELD(Board, commits, commits_make, &self->board)                                                          \
    FIELD(Board, log_at, PyLong_FromUnsignedLongLong, self->board.header->log_at)                              \
    FIELD(Board, rates_at, PyLong_FromUnsignedLongLong, self->board.header->rates_at)                          \
    FIELD(Board, order_at, PyLong_FromUnsignedLongLong, self->board.header->order_at)                          \
    FIELD(Board, errors_at, PyLong_FromUnsignedLongLong, self->board.header->errors_at)                        \
    FIELD(Board, names_at, PyLong_FromUnsignedLongLong, self->board.header->names_at)                          \
    FIELD(Board, shards, PyLong_FromUnsignedLong, self->board.header->shards)                                  \
    FIELD(Board, workers, PyLong_FromUnsignedLong, self->board.header->workers)                                \
    FIELD(Board, is_async, PyBool_FromLong, (long)self->board.header->is_async)                                \
    FIELD(Board, exchange, PyBool_FromLong, (long)self->board.header->exchange)                                \
    FIELD(Board, groups, PyLong_FromUnsignedLong, self->board.header->groups)                                  \
    FIELD(Board, job, PyLong_FromUnsignedLongLong, self->board.header->job)                                    \
    FIELD(Board, steps, PyLong_FromUnsignedLongLong, self->board.header->steps)                                \
    FIELD(Board, examples, PyLong_FromUnsignedLongLong, self->board.header->examples)                          \
    FIELD(Board, batch_size, PyLong_FromUnsignedLongLong, self->board.header->batch_size)
BOARD_FIELDS(CORE_GETTER)

static PyMethodDef Board_methods[] = {
    {"next", Board_next, METH_VARARGS,
     "next($self, weights, worker, spin, wait_s, /)\n--\n\n"
     "Take the worker's next task; return (kind, step, shard, offset of the scratch buffer)."},
    {"commit", Board_commit, METH_O,
     "commit($self, worker, /)\n--\n\n"
     "Commit the gradient taken by next(); return whether it counts."},
    {"refuse", Board_refuse, METH_VARARGS,
     "refuse($self, worker, errno, /)\n--\n\n"
     "Hand back the gradient taken by next(), for which there is no memory to map."},
    {"still_claimed", Board_still_claimed, METH_NOARGS,
     "still_claimed($self, /)\n--\n\n"
     "Return whether this worker still holds the task taken by next()."},
    {"fail", Board_fail, METH_O,
     "fail($self, worker, /)\n--\n\n"
     "Announce that the worker's error text is complete."},
    {"agree", Board_agree, METH_O,
     "agree($self, checksum, /)\n--\n\n"
     "Return whether the metrics' names have this checksum, which the first call sets."},
    {"set_limit", Board_set_limit, METH_O,
     "set_limit($self, limit, /)\n--\n\n"
     "Let steps below `limit` run."},
    {"stop", Board_stop, METH_NOARGS,
     "stop($self, /)\n--\n\n"
     "Stop every worker when it asks for its next task."},
    {"set_workers", Board_set_workers, METH_VARARGS,
     "set_workers($self, workers, spin_s, /)\n--\n\n"
     "Set the number of workers that take part; the others leave."},
    {"set_own", Board_set_own, METH_VARARGS,
     "set_own($self, first, end, /)\n--\n\n"
     "Let the workers compute the shards from `first` to before `end`; a link brings the others."},
    {"nbytes_used", Board_nbytes_used, METH_O,
     "nbytes_used($self, workers, /)\n--\n\n"
     "Return how many bytes from the start need memory with that many workers."},
    {"give_up", Board_give_up, METH_O,
     "give_up($self, worker, /)\n--\n\n"
     "Give a stopped worker's gradient task to others; return its shard, or -1."},
    {"holds_range", Board_holds_range, METH_O,
     "holds_range($self, worker, /)\n--\n\n"
     "Return whether the worker has claimed a norm or an update."},
    {"inflight_open", Board_inflight_open, METH_VARARGS,
     "inflight_open($self, index, batch, /)\n--\n\n"
     "Put a batch into an empty place; return whether it was empty."},
    {"in_flight", Board_in_flight, METH_O,
     "in_flight($self, index, /)\n--\n\n"
     "Return (state, batch, version of the weights of its gradient, offset of the buffer with it)."},
    {"inflight_empty", Board_inflight_empty, METH_O,
     "inflight_empty($self, index, /)\n--\n\n"
     "Empty the place of a batch that is done."},
    {"inflight_apply", Board_inflight_apply, METH_VARARGS,
     "inflight_apply($self, weights, index, step, staleness, /)\n--\n\n"
     "Publish the version that the gradient of a batch makes, and empty its place."},
    {"recover", Board_recover, METH_O,
     "recover($self, worker, /)\n--\n\n"
     "Free the claims of a dead worker; return the shard that it had claimed, or -1."},
    {"slot_ready", Board_slot_ready, METH_NOARGS,
     "slot_ready($self, /)\n--\n\n"
     "Announce that there is a free slot again."},
    {"ring_server", Board_ring_server, METH_NOARGS,
     "ring_server($self, /)\n--\n\n"
     "Make a thread of the server that waits look at the board again."},
    {"wait_server", Board_wait_server, METH_VARARGS,
     "wait_server($self, seen, timeout_s, /)\n--\n\n"
     "Wait until the server's bell differs from `seen`; return the bell."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Board_getset[] = {BOARD_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot Board_slots[] = {
    {Py_tp_doc, "Board(fd): the board of a training, as format_board laid it out. Exports its bytes, writable."},
    {Py_tp_new, Board_new},
    {Py_tp_dealloc, Board_dealloc},
    {Py_tp_methods, Board_methods},
    {Py_tp_getset, Board_getset},
    {Py_bf_getbuffer, Board_getbuffer},
    {0, NULL},
};
static PyType_Spec Board_spec = {"untorn._core.Board", sizeof(BoardObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                                 Board_slots};

static enum status board_create(int fd, const struct board_config *config, const struct board_range *ranges,
                                const struct board_group *groups, const uint64_t *leaves)
{
    uint64_t nbytes = board_nbytes(config);
    if (ftruncate(fd, (off_t)nbytes) != 0)
        return space_status();
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return STATUS_OS;
    enum status status = space_reserve(fd, 0, board_nbytes_needed(config));
    struct board board;
    int cause = errno;
    if (status == STATUS_OK)
        board_format(&board, memory, config, ranges, groups, leaves);
    munmap(memory, nbytes);
    errno = cause;
    return status;
}

/* Read the optimizer of each group. Return whether this has worked; else an exception is set. */
static bool groups_parse(PyObject *kernels, struct board_config *config, struct board_group *groups)
{
    const Py_ssize_t count = PyTuple_Size(kernels);
    if (count < 1 || count > BOARD_MAX_GROUPS) {
        PyErr_Format(PyExc_ValueError, "kernels: expected 1 to %d, found %zd", BOARD_MAX_GROUPS, count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        struct kernel_hyper hyper = {0};
        unsigned optimizer;
        PyObject *kernel = PyTuple_GetItem(kernels, i);
        if (!PyTuple_Check(kernel)) {
            PyErr_SetString(PyExc_TypeError, "kernels: expected tuples");
            return false;
        }
        if (!PyArg_ParseTuple(kernel, "IdddddIII", &optimizer, &hyper.momentum, &hyper.weight_decay, &hyper.beta1,
                              &hyper.beta2, &hyper.eps, &hyper.nesterov, &hyper.centered, &hyper.amsgrad))
            return false;
        if (optimizer >= KERNEL_OPTIMIZERS) {
            PyErr_Format(PyExc_ValueError, "optimizer %u: expected one below %d", optimizer, KERNEL_OPTIMIZERS);
            return false;
        }
        groups[i] = (struct board_group){.optimizer = optimizer, .hyper = hyper};
    }
    config->groups = (uint32_t)count;
    return true;
}

/* Return whether every range has a group, or a shard. */
static bool ranges_have_groups(const struct board_config *config, const struct board_range *ranges)
{
    for (uint32_t i = 0; i < config->ranges; i++)
        if (range_group(&ranges[i]) >= (range_kind(&ranges[i]) == MERGE_SHARD ? config->shards : config->groups))
            return false;
    return true;
}

/* Return whether every range of rows has its set among those of a gradient, and is one leaf or a part of it. */
static bool ranges_have_sets(const struct board_config *config, const struct board_range *ranges)
{
    if (config->sets_nbytes > config->buffer_nbytes || config->sets_at > config->buffer_nbytes - config->sets_nbytes)
        return false;
    for (uint32_t i = 0; i < config->ranges; i++) {
        const struct board_range *range = &ranges[i];
        if (range_kind(range) != MERGE_ROWS)
            continue;
        if (config->leaves == 0 || range->row == 0 || range->count % range->row != 0)
            return false;
        const uint64_t nbytes = sparse_words(range->count / range->row) * sizeof(uint64_t);
        if (range->set_offset % sizeof(uint64_t) != 0 || range->set_offset < config->sets_at ||
            nbytes > config->sets_nbytes || range->set_offset - config->sets_at > config->sets_nbytes - nbytes)
            return false;
    }
    return true;
}

static PyObject *core_format_board(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd",      "job",         "shards",     "max_workers",     "workers",      "is_async",
                            "steps",   "examples",    "batch_size", "gradient_nbytes", "state_stride", "first_version",
                            "kernels", "clip_norm",   "ranges",     "exchange",        "first_step",   "leaves",
                            "sets_at", "sets_nbytes", NULL};
    int fd, is_async, exchange;
    struct board_config config = {0};
    struct board_group groups[BOARD_MAX_GROUPS];
    unsigned long long steps, examples, batch_size, buffer_nbytes, state_stride, first_version, job, first_step,
        sets_at, sets_nbytes;
    PyObject *kernels;
    Py_buffer ranges, leaves;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "i$KIIIpKKKKKKO!dy*pKy*KK", names, &fd, &job, &config.shards, &config.workers, &config.active,
            &is_async, &steps, &examples, &batch_size, &buffer_nbytes, &state_stride, &first_version, &PyTuple_Type,
            &kernels, &config.clip_norm, &ranges, &exchange, &first_step, &leaves, &sets_at, &sets_nbytes))
        return NULL;
    if (!groups_parse(kernels, &config, groups)) {
        PyBuffer_Release(&ranges);
        PyBuffer_Release(&leaves);
        return NULL;
    }
    config.is_async = is_async != 0;
    config.exchange = exchange != 0;
    config.steps = steps;
    config.examples = examples;
    config.batch_size = batch_size;
    config.buffer_nbytes = buffer_nbytes;
    config.state_stride = state_stride;
    config.first_step = first_step;
    config.base_version = first_version - first_step;
    config.job = job;
    config.ranges = (uint32_t)((size_t)ranges.len / sizeof(struct board_range));
    config.leaves = (size_t)leaves.len / sizeof(uint64_t);
    config.sets_at = sets_at;
    config.sets_nbytes = sets_nbytes;
    PyObject *result = NULL;
    if (config.shards == 0 || config.shards > BOARD_MAX_SHARDS || config.workers == 0 ||
        config.workers > BOARD_MAX_WORKERS || config.active > config.workers || config.ranges == 0) {
        PyErr_Format(PyExc_ValueError, "a board has 1 to %d shards, 1 to %d workers and at least one range",
                     BOARD_MAX_SHARDS, BOARD_MAX_WORKERS);
    } else if (!ranges_have_groups(&config, ranges.buf)) {
        PyErr_Format(PyExc_ValueError, "ranges: a group is not below %u, the number of kernels", config.groups);
    } else if (!ranges_have_sets(&config, ranges.buf)) {
        PyErr_SetString(PyExc_ValueError, "ranges: rows whose set lies outside the sets of the board");
    } else if (config.is_async && config.exchange) {
        PyErr_SetString(PyExc_ValueError,
                        "exchange: the shards of an asynchronous training are batches, without a sum");
    } else if (first_step > first_version || first_step > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "first_step: expected at most the first version, %llu, found %llu",
                     first_version, first_step);
    } else {
        enum status status;
        do { /* signals that keep coming are handled before the next try */
            status = board_create(fd, &config, ranges.buf, groups, leaves.buf);
        } while (status == STATUS_INTERRUPTED && PyErr_CheckSignals() == 0);
        if (status != STATUS_INTERRUPTED)
            result = status == STATUS_OK ? Py_NewRef(Py_None) : status_raise(core_of_module(module), status);
    }
    PyBuffer_Release(&ranges);
    PyBuffer_Release(&leaves);
    return result;
}

static PyMethodDef board_functions[] = {
    {"format_board", (PyCFunction)(void (*)(void))core_format_board, METH_VARARGS | METH_KEYWORDS,
     "format_board($module, fd, *, job, shards, max_workers, workers, is_async, steps, examples, "
     "batch_size, gradient_nbytes, state_stride, first_version, kernels, clip_norm, ranges, exchange, "
     "first_step, leaves, sets_at, sets_nbytes)\n--\n\n"
     "Lay out a board in an empty file; the rest are the fields of untorn.board.BoardSpec."},
    {NULL, NULL, 0, NULL},
};

/* The structs that Python reads and writes, as numpy.dtype takes them. Every element has 8 bytes. */
struct board_member {
    const char *name, *format;
    size_t offset;
};
#define BOARD_MEMBER(struct_name, member, format) {#member, format, offsetof(struct struct_name, member)}
_Static_assert(BOARD_METRICS == 16, "the formats below");
static const struct board_member log_members[] = {
    BOARD_MEMBER(board_log, examples, "f8"),  BOARD_MEMBER(board_log, loss, "f8"),
    BOARD_MEMBER(board_log, metrics, "16f8"), BOARD_MEMBER(board_log, staleness, "f8"),
    BOARD_MEMBER(board_log, grad_norm, "f8"), {NULL, NULL, 0},
};
/* measured: the loss, and the metrics behind it */
_Static_assert(offsetof(struct board_buffer, metrics) == offsetof(struct board_buffer, loss) + sizeof(double),
               "measured");
static const struct board_member buffer_members[] = {
    BOARD_MEMBER(board_buffer, examples, "u8"),
    {"measured", "17f8", offsetof(struct board_buffer, loss)},
    BOARD_MEMBER(board_buffer, version, "u8"),
    {NULL, NULL, 0},
};
static const struct board_member range_members[] = {
    BOARD_MEMBER(board_range, slot_offset, "u8"),
    BOARD_MEMBER(board_range, grad_offset, "u8"),
    BOARD_MEMBER(board_range, count, "u8"),
    BOARD_MEMBER(board_range, dtype, "u8"),
    BOARD_MEMBER(board_range, row, "u8"),
    BOARD_MEMBER(board_range, set_offset, "u8"),
    {NULL, NULL, 0},
};

static bool layout_add(PyObject *module, const char *name, const struct board_member *member, size_t nbytes)
{
    PyObject *names = PyList_New(0), *formats = PyList_New(0), *offsets = PyList_New(0);
    bool done = names != NULL && formats != NULL && offsets != NULL;
    for (; done && member->name != NULL; member++)
        done = list_append_new(names, PyUnicode_FromString(member->name)) &&
               list_append_new(formats, PyUnicode_FromString(member->format)) &&
               list_append_new(offsets, PyLong_FromSize_t(member->offset));
    PyObject *layout = done ? Py_BuildValue("{sOsOsOsn}", "names", names, "formats", formats, "offsets", offsets,
                                            "itemsize", (Py_ssize_t)nbytes)
                            : NULL;
    done = layout != NULL && PyModule_AddObjectRef(module, name, layout) == 0;
    Py_XDECREF(layout);
    Py_XDECREF(names);
    Py_XDECREF(formats);
    Py_XDECREF(offsets);
    return done;
}

static const struct core_constant board_constants[] = {
    CORE_CONSTANT(RUN_GRADIENT),
    CORE_CONSTANT(RUN_IDLE),
    CORE_CONSTANT(RUN_STOP),
    CORE_CONSTANT(RUN_NEED_SLOT),
    CORE_CONSTANT(RUN_LEAVE),
    CORE_CONSTANT(TASK_DONE),
    CORE_CONSTANT(TASK_EMPTY),
    {"KERNEL_RATES", sizeof(struct kernel_rates) / sizeof(double)},
    CORE_CONSTANT(KERNEL_SGD),
    CORE_CONSTANT(KERNEL_ADAM),
    CORE_CONSTANT(KERNEL_RMSPROP),
    CORE_CONSTANT(KERNEL_ADAGRAD),
    CORE_CONSTANT(KERNEL_F32),
    CORE_CONSTANT(KERNEL_F64),
    CORE_CONSTANT(MERGE_STEP),
    CORE_CONSTANT(MERGE_MEAN),
    CORE_CONSTANT(MERGE_FIRST),
    CORE_CONSTANT(MERGE_KEEP),
    CORE_CONSTANT(MERGE_SUM),
    CORE_CONSTANT(MERGE_ABSENT),
    CORE_CONSTANT(MERGE_SKIPPED),
    CORE_CONSTANT(MERGE_SHARD),
    CORE_CONSTANT(MERGE_ROWS),
    CORE_CONSTANT(SPARSE_ROWS),
    CORE_CONSTANT(KERNEL_SPARSE_ADAM),
    CORE_CONSTANT(BOARD_METRICS),
    CORE_CONSTANT(BOARD_NAMES_NBYTES),
    CORE_CONSTANT(BOARD_ERROR_NBYTES),
    {NULL, 0},
};

bool module_add_board(PyObject *module)
{
    return type_add(module, &Board_spec, &core_of_module(module)->board_type) &&
           PyModule_AddFunctions(module, board_functions) == 0 && constants_add(module, board_constants) &&
           layout_add(module, "BOARD_LOG_LAYOUT", log_members, sizeof(struct board_log)) &&
           layout_add(module, "BOARD_BUFFER_LAYOUT", buffer_members, sizeof(struct board_buffer)) &&
           layout_add(module, "BOARD_RANGE_LAYOUT", range_members, sizeof(struct board_range));
}
