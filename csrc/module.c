/* The Python face of the core: the one file that includes Python.h.
 *
 *     Attachment   one process's side of a channel (attachment.h)
 *     Hold         a pinned version; exports its bytes, read-only; unpins when the last view of it dies
 *     Draft        a slot being written; exports its bytes, writable
 *     Board        sync training's board (board.h); exports all its bytes, writable
 *     StatusError  (code, errno): what went wrong, from the one table of attachment.h. The Python layer above knows
 *                  the names of things and turns it into messages for people.
 *
 * The buffer protocol carries lifetimes: NumPy keeps the object that exported the memory as an array's base, so a
 * view of a view of a leaf still keeps its Hold. The GIL is released around every wait and every large copy.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "attachment.h"
#include "board.h"
#include "futex.h"

static PyObject *StatusError;
static PyTypeObject *AttachmentType, *HoldType, *DraftType;

/* -- errors ----------------------------------------------------------------------------------------------------- */

static const char *const STATUS_NAMES[] = {
    [STATUS_OK] = "ok",           [STATUS_OS] = "os",           [STATUS_FORMAT] = "format",
    [STATUS_LAYOUT] = "layout",   [STATUS_BUSY] = "busy",       [STATUS_NO_ROW] = "no_row",
    [STATUS_NO_SLOT] = "no_slot", [STATUS_NO_SPACE] = "no_space", [STATUS_FORKED] = "forked",
    [STATUS_TIMEOUT] = "timeout", [STATUS_INTERRUPTED] = "interrupted",
};

static PyObject *status_raise(enum status status)
{
    PyObject *args = Py_BuildValue("(si)", STATUS_NAMES[status], errno);
    if (args != NULL) {
        PyErr_SetObject(StatusError, args);
        Py_DECREF(args);
    }
    return NULL;
}

static void object_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type); /* an object of a heap type owns a reference to it */
}

/* -- Attachment ------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct attachment *attachment;
} AttachmentObject;

static PyObject *Attachment_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control_fd", "data_fd", "role", NULL};
    int control_fd, data_fd, role;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iii", names, &control_fd, &data_fd, &role))
        return NULL;
    AttachmentObject *self = PyObject_New(AttachmentObject, type);
    if (self == NULL)
        return NULL;
    self->attachment = NULL;
    enum status status = attachment_open(control_fd, data_fd, (enum attachment_role)role, &self->attachment);
    if (status != STATUS_OK) {
        status_raise(status);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void Attachment_dealloc(PyObject *self)
{
    struct attachment *attachment = ((AttachmentObject *)self)->attachment;
    if (attachment != NULL)
        attachment_close(attachment);
    object_free(self);
}

typedef struct {
    PyObject_HEAD
    AttachmentObject *owner;
    struct pin pin;
} HoldObject;

static PyObject *Attachment_pin(PyObject *self, PyObject *unused)
{
    HoldObject *hold = PyObject_New(HoldObject, HoldType);
    if (hold == NULL)
        return NULL;
    hold->owner = NULL;
    enum status status = attachment_pin(((AttachmentObject *)self)->attachment, &hold->pin);
    if (status != STATUS_OK) {
        status_raise(status);
        Py_DECREF(hold);
        return NULL;
    }
    Py_INCREF(self);
    hold->owner = (AttachmentObject *)self;
    return (PyObject *)hold;
}

static PyObject *Attachment_wait(PyObject *self, PyObject *args)
{
    unsigned long long seen;
    double timeout_s;
    if (!PyArg_ParseTuple(args, "Kd", &seen, &timeout_s))
        return NULL;
    enum status status;
    Py_BEGIN_ALLOW_THREADS
    status = attachment_wait(((AttachmentObject *)self)->attachment, seen, (int64_t)(timeout_s * 1e9));
    Py_END_ALLOW_THREADS
    if (status == STATUS_INTERRUPTED && PyErr_CheckSignals() != 0)
        return NULL;
    return PyBool_FromLong(status == STATUS_OK);
}

static PyObject *Attachment_pick(PyObject *self, PyObject *argument)
{
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    unsigned slot = 0;
    enum status status;
    Py_BEGIN_ALLOW_THREADS
    status = attachment_pick(((AttachmentObject *)self)->attachment, nbytes, &slot);
    Py_END_ALLOW_THREADS
    return status == STATUS_OK ? PyLong_FromUnsignedLong(slot) : status_raise(status);
}

static bool slot_parse(PyObject *argument, unsigned *slot)
{
    unsigned long value = PyLong_AsUnsignedLong(argument);
    if (!PyErr_Occurred() && value >= CHANNEL_MAX_SLOTS)
        PyErr_Format(PyExc_ValueError, "slot %lu: expected 0 to %u", value, CHANNEL_MAX_SLOTS - 1);
    *slot = (unsigned)value;
    return !PyErr_Occurred();
}

typedef struct {
    PyObject_HEAD
    AttachmentObject *owner;
    unsigned slot;
    uint8_t *address;
    uint64_t nbytes;
} DraftObject;

static PyObject *Attachment_draft(PyObject *self, PyObject *argument)
{
    unsigned slot;
    if (!slot_parse(argument, &slot))
        return NULL;
    DraftObject *draft = PyObject_New(DraftObject, DraftType);
    if (draft == NULL)
        return NULL;
    draft->owner = NULL;
    draft->slot = slot;
    enum status status =
        attachment_lend(((AttachmentObject *)self)->attachment, slot, &draft->address, &draft->nbytes);
    if (status != STATUS_OK) {
        status_raise(status);
        Py_DECREF(draft);
        return NULL;
    }
    Py_INCREF(self);
    draft->owner = (AttachmentObject *)self;
    return (PyObject *)draft;
}

static PyObject *Attachment_publish(PyObject *self, PyObject *args)
{
    unsigned slot;
    unsigned long long version, nbytes, schema_nbytes, schema_id;
    if (!PyArg_ParseTuple(args, "IKKKK", &slot, &version, &nbytes, &schema_nbytes, &schema_id))
        return NULL;
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    uint8_t *address;
    uint64_t capacity;
    if (a->role != ROLE_PUBLISHER || a->forked || slot >= CHANNEL_MAX_SLOTS)
        return status_raise(STATUS_FORKED);
    enum status status = attachment_map(a, slot, &address, &capacity);
    if (status != STATUS_OK)
        return status_raise(status);
    if (nbytes > capacity || schema_nbytes > nbytes - sizeof(struct slot_header))
        return status_raise(STATUS_FORMAT);
    *(struct slot_header *)address = (struct slot_header){
        .version = version,
        .published_ns = clock_wall_ns(),
        .nbytes = nbytes,
        .schema_nbytes = schema_nbytes,
        .schema_id = schema_id,
    };
    channel_publish(&a->channel, version, slot);
    Py_RETURN_NONE;
}

static PyObject *Attachment_publisher_alive(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(attachment_publisher_alive(((AttachmentObject *)self)->attachment));
}

static PyObject *Attachment_retire(PyObject *self, PyObject *unused)
{
    attachment_retire(((AttachmentObject *)self)->attachment);
    Py_RETURN_NONE;
}

static PyObject *Attachment_reclaim(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLong(attachment_reclaim(((AttachmentObject *)self)->attachment));
}

static bool list_append_new(PyObject *list, PyObject *item)
{
    bool done = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return done;
}

/* Writers in training: have one more slot with this room, changing none that others may have picked. */
static PyObject *Attachment_grow(PyObject *self, PyObject *argument)
{
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    enum status status;
    Py_BEGIN_ALLOW_THREADS
    status = attachment_grow(((AttachmentObject *)self)->attachment, nbytes);
    Py_END_ALLOW_THREADS
    if (status != STATUS_OK)
        return status_raise(status);
    Py_RETURN_NONE;
}

static PyObject *Attachment_rows(PyObject *self, PyObject *unused)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    PyObject *list = PyList_New(0);
    uint32_t high = load_acquire(&a->channel.commons->high);
    for (uint32_t row = 1; list != NULL && row <= high && row <= a->channel.max_readers; row++) {
        const struct reader_row *line = &a->channel.rows[row];
        if (row != a->row && !attachment_row_alive(a, row))
            continue;
        PyObject *item = Py_BuildValue("(IILK)", row, load_relaxed((shared_u32 *)&line->pid), (long long)line->attached_ns,
                                       (unsigned long long)load_acquire((shared_u64 *)&line->held));
        if (!list_append_new(list, item))
            Py_CLEAR(list);
    }
    return list;
}

/* (slot, offset, capacity, version) of the slots that have space. A version is a hint unless the slot is held. */
static PyObject *Attachment_slots(PyObject *self, PyObject *unused)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    PyObject *list = PyList_New(0);
    for (unsigned slot = 0; list != NULL && slot < a->channel.max_slots; slot++) {
        struct slot_extent *extent = &a->channel.control->slots[slot];
        unsigned long long offset = load_acquire(&extent->offset), capacity = load_acquire(&extent->capacity);
        struct slot_header header = {0};
        if (capacity == 0)
            continue;
        if (pread(a->data_fd, &header, sizeof header, (off_t)offset) != (ssize_t)sizeof header)
            header.version = 0;
        if (!list_append_new(list, Py_BuildValue("(IKKKL)", slot, offset, capacity, (unsigned long long)header.version,
                                                 (long long)header.published_ns)))
            Py_CLEAR(list);
    }
    return list;
}

enum attachment_field {
    FIELD_VERSION, FIELD_LATEST_SLOT, FIELD_CLOSED, FIELD_FORKED, FIELD_CONTROL_FD, FIELD_DATA_FD, FIELD_MAX_READERS,
    FIELD_MAX_SLOTS, FIELD_ROW, FIELD_PUBLISHER_PID, FIELD_CREATED_NS, FIELD_ROLE,
};

static PyObject *Attachment_field(PyObject *self, void *which)
{
    const struct attachment *a = ((AttachmentObject *)self)->attachment;
    struct control *control = a->channel.control;
    switch ((enum attachment_field)(intptr_t)which) {
    case FIELD_VERSION: return PyLong_FromUnsignedLongLong(latest_version(channel_latest(&a->channel)));
    case FIELD_LATEST_SLOT: return PyLong_FromUnsignedLong(latest_slot(channel_latest(&a->channel)));
    case FIELD_CLOSED: return PyBool_FromLong(load_acquire(&control->state) == CHANNEL_CLOSED);
    case FIELD_FORKED: return PyBool_FromLong(a->forked);
    case FIELD_CONTROL_FD: return PyLong_FromLong(a->control_fd);
    case FIELD_DATA_FD: return PyLong_FromLong(a->data_fd);
    case FIELD_MAX_READERS: return PyLong_FromUnsignedLong(a->channel.max_readers);
    case FIELD_MAX_SLOTS: return PyLong_FromUnsignedLong(a->channel.max_slots);
    case FIELD_ROW: return PyLong_FromUnsignedLong(a->row);
    case FIELD_PUBLISHER_PID: return PyLong_FromUnsignedLong(load_relaxed(&control->publisher_pid));
    case FIELD_CREATED_NS: return PyLong_FromLongLong(control->created_ns);
    case FIELD_ROLE: return PyLong_FromLong(a->role);
    }
    Py_RETURN_NONE;
}

static PyObject *Attachment_id(PyObject *self, void *unused)
{
    return PyBytes_FromStringAndSize((const char *)((AttachmentObject *)self)->attachment->channel.control->id, 16);
}

static PyObject *Attachment_seal(PyObject *self, PyObject *argument)
{
    if (!PyObject_TypeCheck(argument, DraftType) || ((DraftObject *)argument)->owner != (AttachmentObject *)self) {
        PyErr_SetString(PyExc_TypeError, "seal: expected a Draft of this attachment");
        return NULL;
    }
    const DraftObject *draft = (const DraftObject *)argument;
    enum status status = attachment_seal(((AttachmentObject *)self)->attachment, draft->slot, draft->address);
    if (status != STATUS_OK)
        return status_raise(status);
    Py_RETURN_NONE;
}

static PyMethodDef Attachment_methods[] = {
    {"pin", Attachment_pin, METH_NOARGS, "Pin the newest version; the Hold exports its bytes, read-only."},
    {"wait", Attachment_wait, METH_VARARGS, "wait(seen, timeout_s) -> bool: is there a version newer than `seen`?"},
    {"pick", Attachment_pick, METH_O, "pick(nbytes) -> slot that nobody can read, with at least that room."},
    {"grow", Attachment_grow, METH_O, "grow(nbytes): one more slot of at least that room."},
    {"draft", Attachment_draft, METH_O, "draft(slot) -> Draft: the slot's bytes, writable."},
    {"seal", Attachment_seal, METH_O, "seal(draft): later writes through it land in a private copy."},
    {"publish", Attachment_publish, METH_VARARGS, "publish(slot, version, nbytes, schema_nbytes, schema_id)."},
    {"publisher_alive", Attachment_publisher_alive, METH_NOARGS, "Does the kernel say that a publisher lives?"},
    {"retire", Attachment_retire, METH_NOARGS, "End publishing: mark the channel closed and release the lock."},
    {"reclaim", Attachment_reclaim, METH_NOARGS, "Clear the rows of dead readers; how many held something."},
    {"rows", Attachment_rows, METH_NOARGS, "[(row, pid, attached_ns, held bits)] of living readers."},
    {"slots", Attachment_slots, METH_NOARGS, "[(slot, offset, capacity, version, published_ns)] of slots with space."},
    {NULL, NULL, 0, NULL},
};

#define FIELD(name, which) {name, Attachment_field, NULL, NULL, (void *)(intptr_t)(which)}
static PyGetSetDef Attachment_getset[] = {
    FIELD("version", FIELD_VERSION),         FIELD("latest_slot", FIELD_LATEST_SLOT),
    FIELD("closed", FIELD_CLOSED),           FIELD("forked", FIELD_FORKED),
    FIELD("control_fd", FIELD_CONTROL_FD),   FIELD("data_fd", FIELD_DATA_FD),
    FIELD("max_readers", FIELD_MAX_READERS), FIELD("max_slots", FIELD_MAX_SLOTS),
    FIELD("row", FIELD_ROW),                 FIELD("publisher_pid", FIELD_PUBLISHER_PID),
    FIELD("created_ns", FIELD_CREATED_NS),   FIELD("role", FIELD_ROLE),
    {"id", Attachment_id, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Attachment_slots_[] = {
    {Py_tp_doc, "Attachment(control_fd, data_fd, role): one process's side of a channel. Owns both descriptors."},
    {Py_tp_new, Attachment_new},
    {Py_tp_dealloc, Attachment_dealloc},
    {Py_tp_methods, Attachment_methods},
    {Py_tp_getset, Attachment_getset},
    {0, NULL},
};
static PyType_Spec Attachment_spec = {"untorn._core.Attachment", sizeof(AttachmentObject), 0, Py_TPFLAGS_DEFAULT,
                                      Attachment_slots_};

/* -- Hold and Draft --------------------------------------------------------------------------------------------- */

static void Hold_dealloc(PyObject *self)
{
    HoldObject *hold = (HoldObject *)self;
    if (hold->owner != NULL) {
        attachment_unpin(hold->owner->attachment, hold->pin.slot, hold->pin.generation);
        Py_DECREF(hold->owner);
    }
    object_free(self);
}

static int Hold_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    HoldObject *hold = (HoldObject *)self;
    return PyBuffer_FillInfo(view, self, hold->pin.address, (Py_ssize_t)hold->pin.nbytes, 1, flags);
}

enum hold_field { HOLD_VERSION, HOLD_NBYTES, HOLD_SCHEMA_NBYTES, HOLD_SCHEMA_ID, HOLD_PUBLISHED_NS, HOLD_SLOT };

static PyObject *Hold_field(PyObject *self, void *which)
{
    const struct pin *pin = &((HoldObject *)self)->pin;
    const struct slot_header *header = (const struct slot_header *)pin->address;
    switch ((enum hold_field)(intptr_t)which) {
    case HOLD_VERSION: return PyLong_FromUnsignedLongLong(pin->version);
    case HOLD_NBYTES: return PyLong_FromUnsignedLongLong(pin->nbytes);
    case HOLD_SCHEMA_NBYTES: return PyLong_FromUnsignedLongLong(header->schema_nbytes);
    case HOLD_SCHEMA_ID: return PyLong_FromUnsignedLongLong(header->schema_id);
    case HOLD_PUBLISHED_NS: return PyLong_FromLongLong(header->published_ns);
    case HOLD_SLOT: return PyLong_FromUnsignedLong(pin->slot);
    }
    Py_RETURN_NONE;
}

#define HOLD_FIELD(name, which) {name, Hold_field, NULL, NULL, (void *)(intptr_t)(which)}
static PyGetSetDef Hold_getset[] = {
    HOLD_FIELD("version", HOLD_VERSION),
    HOLD_FIELD("nbytes", HOLD_NBYTES),
    HOLD_FIELD("schema_nbytes", HOLD_SCHEMA_NBYTES),
    HOLD_FIELD("schema_id", HOLD_SCHEMA_ID),
    HOLD_FIELD("published_ns", HOLD_PUBLISHED_NS),
    HOLD_FIELD("slot", HOLD_SLOT),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Hold_slots[] = {
    {Py_tp_doc, "One pinned version. Exports its bytes read-only; the pin ends when the last view of it dies."},
    {Py_tp_dealloc, Hold_dealloc},
    {Py_tp_getset, Hold_getset},
    {Py_bf_getbuffer, Hold_getbuffer},
    {0, NULL},
};
static PyType_Spec Hold_spec = {"untorn._core.Hold", sizeof(HoldObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, Hold_slots};

static void Draft_dealloc(PyObject *self)
{
    DraftObject *draft = (DraftObject *)self;
    if (draft->owner != NULL) {
        attachment_return(draft->owner->attachment, draft->slot, draft->address);
        Py_DECREF(draft->owner);
    }
    object_free(self);
}

static int Draft_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    DraftObject *draft = (DraftObject *)self;
    return PyBuffer_FillInfo(view, self, draft->address, (Py_ssize_t)draft->nbytes, 0, flags);
}

static PyType_Slot Draft_slots[] = {
    {Py_tp_doc, "A slot that nobody can read yet. Exports its bytes, writable."},
    {Py_tp_dealloc, Draft_dealloc},
    {Py_bf_getbuffer, Draft_getbuffer},
    {0, NULL},
};
static PyType_Spec Draft_spec = {"untorn._core.Draft", sizeof(DraftObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, Draft_slots};

/* -- Board ------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    struct board board;
    void *memory;
    uint64_t nbytes;
    struct turn turn;
} BoardObject;

static PyObject *Board_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int fd;
    struct stat stat;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    if (fstat(fd, &stat) != 0)
        return status_raise(STATUS_OS);
    void *memory = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return status_raise(STATUS_OS);
    struct board board;
    BoardObject *self = NULL;
    enum status status = board_attach(&board, memory, (uint64_t)stat.st_size);
    if (status == STATUS_OK)
        self = PyObject_New(BoardObject, type);
    else
        status_raise(status);
    if (self == NULL) {
        munmap(memory, (size_t)stat.st_size);
        return NULL;
    }
    self->board = board;
    self->memory = memory;
    self->nbytes = (uint64_t)stat.st_size;
    self->turn = (struct turn){.kind = TURN_IDLE};
    return (PyObject *)self;
}

static void Board_dealloc(PyObject *self)
{
    munmap(((BoardObject *)self)->memory, ((BoardObject *)self)->nbytes);
    object_free(self);
}

static int Board_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    BoardObject *board = (BoardObject *)self;
    return PyBuffer_FillInfo(view, self, board->memory, (Py_ssize_t)board->nbytes, 0, flags);
}

static PyObject *Board_next(PyObject *self, PyObject *args)
{
    BoardObject *board = (BoardObject *)self;
    PyObject *weights;
    unsigned worker, first;
    double spin_s, wait_s;
    if (!PyArg_ParseTuple(args, "O!IIdd", AttachmentType, &weights, &worker, &first, &spin_s, &wait_s))
        return NULL;
    if (worker >= board->board.header->workers) {
        PyErr_Format(PyExc_ValueError, "worker %u: the board has %u", worker, board->board.header->workers);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    board->turn = board_next(&board->board, ((AttachmentObject *)weights)->attachment, worker, first,
                             (int64_t)(spin_s * 1e9), (int64_t)(wait_s * 1e9));
    Py_END_ALLOW_THREADS
    const struct turn *turn = &board->turn;
    const uint8_t *buffer = (const uint8_t *)board_buffer_at(&board->board, turn->buffer);
    return Py_BuildValue("(iKIK)", (int)turn->kind, (unsigned long long)turn->step, turn->shard,
                         (unsigned long long)(buffer - (const uint8_t *)board->memory));
}

static PyObject *Board_commit(PyObject *self, PyObject *argument)
{
    BoardObject *board = (BoardObject *)self;
    unsigned long worker = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (board->turn.kind != TURN_GRADIENT || worker >= board->board.header->workers) {
        PyErr_SetString(PyExc_ValueError, "commit: no gradient task was taken");
        return NULL;
    }
    bool counts = board_commit(&board->board, (uint32_t)worker, &board->turn);
    board->turn.kind = TURN_IDLE;
    return PyBool_FromLong(counts);
}

static PyObject *Board_fail(PyObject *self, PyObject *argument)
{
    struct board_header *header = ((BoardObject *)self)->board.header;
    unsigned long worker = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    uint32_t none = 0;
    atomic_compare_exchange_strong(&header->failed, &none, (uint32_t)worker + 1); /* pairs with the server's load_acquire */
    board_ring_server(&((BoardObject *)self)->board);
    Py_RETURN_NONE;
}

static PyObject *Board_open(PyObject *self, PyObject *argument)
{
    unsigned long long limit = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    board_open(&((BoardObject *)self)->board, limit);
    Py_RETURN_NONE;
}

static PyObject *Board_stop(PyObject *self, PyObject *unused)
{
    board_stop(&((BoardObject *)self)->board);
    Py_RETURN_NONE;
}

static PyObject *Board_recover(PyObject *self, PyObject *argument)
{
    unsigned long worker = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    int64_t shard = -1;
    if (worker < ((BoardObject *)self)->board.header->workers)
        shard = board_recover(&((BoardObject *)self)->board, (uint32_t)worker);
    return PyLong_FromLongLong(shard);
}

static PyObject *Board_slot_ready(PyObject *self, PyObject *unused)
{
    store_release(&((BoardObject *)self)->board.header->need_slot, 0);
    board_ring(&((BoardObject *)self)->board);
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
    if (load_acquire(&header->server_bell) == seen)
        result = futex_sleep(&header->server_bell, seen, &header->server_sleepers, (int64_t)(timeout_s * 1e9));
    Py_END_ALLOW_THREADS
    if (result == FUTEX_INTERRUPTED && PyErr_CheckSignals() != 0)
        return NULL;
    return PyLong_FromUnsignedLong(load_acquire(&header->server_bell));
}

enum board_field {
    BOARD_STEP, BOARD_LIMIT, BOARD_NEED_SLOT, BOARD_FAILED, BOARD_LOG_AT, BOARD_LR_AT,
    BOARD_ORDER_AT, BOARD_ERRORS_AT, BOARD_NAMES_AT, BOARD_SHARDS, BOARD_WORKERS, BOARD_STEPS, BOARD_EXAMPLES,
    BOARD_BATCH_SIZE, BOARD_STOPPED,
};

static PyObject *Board_field(PyObject *self, void *which)
{
    const struct board *board = &((BoardObject *)self)->board;
    struct board_header *header = board->header;
    unsigned long long value = 0;
    switch ((enum board_field)(intptr_t)which) {
    case BOARD_STEP: value = board_step(board); break;
    case BOARD_LIMIT: value = load_acquire(&header->limit); break;
    case BOARD_NEED_SLOT: value = load_acquire(&header->need_slot); break;
    case BOARD_FAILED: value = load_acquire(&header->failed); break;
    case BOARD_STOPPED: value = load_acquire(&header->stop); break;
    case BOARD_LOG_AT: value = header->log_at; break;
    case BOARD_LR_AT: value = header->lr_at; break;
    case BOARD_ORDER_AT: value = header->order_at; break;
    case BOARD_ERRORS_AT: value = header->errors_at; break;
    case BOARD_NAMES_AT: value = header->names_at; break;
    case BOARD_SHARDS: value = header->shards; break;
    case BOARD_WORKERS: value = header->workers; break;
    case BOARD_STEPS: value = header->steps; break;
    case BOARD_EXAMPLES: value = header->examples; break;
    case BOARD_BATCH_SIZE: value = header->batch_size; break;
    }
    return PyLong_FromUnsignedLongLong(value);
}

/* Gradients committed by each worker. */
static PyObject *Board_commits(PyObject *self, void *unused)
{
    const struct board *board = &((BoardObject *)self)->board;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < board->header->workers; i++)
        if (!list_append_new(list, PyLong_FromUnsignedLongLong(load_relaxed(&board->workers[i].commits))))
            Py_CLEAR(list);
    return list;
}

static PyMethodDef Board_methods[] = {
    {"next", Board_next, METH_VARARGS,
     "next(weights, worker, first, spin_s, wait_s) -> (kind, step, shard, offset of the scratch buffer)."},
    {"commit", Board_commit, METH_O, "commit(worker) -> bool: does the gradient taken by next() count?"},
    {"fail", Board_fail, METH_O, "fail(worker): the worker's error text is complete."},
    {"open", Board_open, METH_O, "open(limit): let steps below `limit` run."},
    {"stop", Board_stop, METH_NOARGS, "Stop every worker at its next turn."},
    {"recover", Board_recover, METH_O, "recover(worker): settle the affairs of a worker that is dead; the shard it had claimed, or -1."},
    {"slot_ready", Board_slot_ready, METH_NOARGS, "There is a free slot again."},
    {"wait_server", Board_wait_server, METH_VARARGS, "wait_server(seen, timeout_s) -> the server's bell."},
    {NULL, NULL, 0, NULL},
};

#define BOARD_FIELD(name, which) {name, Board_field, NULL, NULL, (void *)(intptr_t)(which)}
static PyGetSetDef Board_getset[] = {
    BOARD_FIELD("step", BOARD_STEP),
    BOARD_FIELD("limit", BOARD_LIMIT),
    BOARD_FIELD("need_slot", BOARD_NEED_SLOT),
    BOARD_FIELD("failed", BOARD_FAILED),
    BOARD_FIELD("stopped", BOARD_STOPPED),
    BOARD_FIELD("log_at", BOARD_LOG_AT),
    BOARD_FIELD("lr_at", BOARD_LR_AT),
    BOARD_FIELD("order_at", BOARD_ORDER_AT),
    BOARD_FIELD("errors_at", BOARD_ERRORS_AT),
    BOARD_FIELD("names_at", BOARD_NAMES_AT),
    BOARD_FIELD("shards", BOARD_SHARDS),
    BOARD_FIELD("workers", BOARD_WORKERS),
    BOARD_FIELD("steps", BOARD_STEPS),
    BOARD_FIELD("examples", BOARD_EXAMPLES),
    BOARD_FIELD("batch_size", BOARD_BATCH_SIZE),
    {"commits", Board_commits, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Board_slots[] = {
    {Py_tp_doc, "Board(fd): sync training's board, as format_board laid it out. Exports its bytes, writable."},
    {Py_tp_new, Board_new},
    {Py_tp_dealloc, Board_dealloc},
    {Py_tp_methods, Board_methods},
    {Py_tp_getset, Board_getset},
    {Py_bf_getbuffer, Board_getbuffer},
    {0, NULL},
};
static PyType_Spec Board_spec = {"untorn._core.Board", sizeof(BoardObject), 0, Py_TPFLAGS_DEFAULT, Board_slots};

static enum status board_create(int fd, const struct board_config *config, const struct board_range *ranges)
{
    uint64_t nbytes = board_nbytes(config);
    errno = posix_fallocate(fd, 0, (off_t)nbytes);
    if (errno != 0)
        return STATUS_NO_SPACE;
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return STATUS_OS;
    struct board board;
    board_format(&board, memory, config, ranges);
    munmap(memory, nbytes);
    return STATUS_OK;
}

static PyObject *core_format_board(PyObject *module, PyObject *args)
{
    int fd;
    struct board_config config = {0};
    unsigned long long steps, examples, batch_size, buffer_nbytes, state_stride, base_version;
    Py_buffer ranges;
    if (!PyArg_ParseTuple(args, "i(IIKKKKKK)(IddI)y*", &fd, &config.shards, &config.workers, &steps, &examples,
                          &batch_size, &buffer_nbytes, &state_stride, &base_version, &config.optimizer,
                          &config.hyper.momentum, &config.hyper.weight_decay, &config.hyper.nesterov, &ranges))
        return NULL;
    config.steps = steps;
    config.examples = examples;
    config.batch_size = batch_size;
    config.buffer_nbytes = buffer_nbytes;
    config.state_stride = state_stride;
    config.base_version = base_version;
    config.ranges = (uint32_t)((size_t)ranges.len / sizeof(struct board_range));
    PyObject *result = NULL;
    if (config.shards == 0 || config.shards > BOARD_MAX_SHARDS || config.workers == 0 ||
        config.workers > BOARD_MAX_WORKERS || config.ranges == 0) {
        PyErr_Format(PyExc_ValueError, "a board has 1 to %d shards, 1 to %d workers and at least one range",
                     BOARD_MAX_SHARDS, BOARD_MAX_WORKERS);
    } else {
        enum status status = board_create(fd, &config, ranges.buf);
        result = status == STATUS_OK ? Py_NewRef(Py_None) : status_raise(status);
    }
    PyBuffer_Release(&ranges);
    return result;
}

/* -- module ----------------------------------------------------------------------------------------------------- */

static PyObject *core_format_control(PyObject *module, PyObject *args)
{
    int fd;
    const char *id;
    Py_ssize_t id_nbytes;
    unsigned max_readers, max_slots, keep_slots;
    if (!PyArg_ParseTuple(args, "iy#III", &fd, &id, &id_nbytes, &max_readers, &max_slots, &keep_slots))
        return NULL;
    if (id_nbytes != 16) {
        PyErr_Format(PyExc_ValueError, "channel id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    enum status status = attachment_format(fd, (const uint8_t *)id, max_readers, max_slots, keep_slots);
    if (status != STATUS_OK)
        return status_raise(status);
    Py_RETURN_NONE;
}

static PyObject *core_control_nbytes(PyObject *module, PyObject *argument)
{
    unsigned long max_readers = PyLong_AsUnsignedLong(argument);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(attachment_control_nbytes((uint32_t)max_readers));
}

static PyObject *core_copy(PyObject *module, PyObject *args)
{
    Py_buffer target, source;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(args, "w*ny*", &target, &offset, &source))
        return NULL;
    bool fits = offset >= 0 && source.len <= target.len && offset <= target.len - source.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        memcpy((char *)target.buf + offset, source.buf, (size_t)source.len);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "copy: the source does not fit into the target");
    }
    PyBuffer_Release(&target);
    PyBuffer_Release(&source);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

/* Copy one leaf to its place if it is just the bytes that belong there: contiguous, of that format and size. */
static int leaf_copy(const Py_buffer *target, PyObject *place, PyObject *leaf)
{
    unsigned long long offset, nbytes;
    const char *format;
    Py_buffer source;
    if (!PyArg_ParseTuple(place, "KKs", &offset, &nbytes, &format))
        return -1;
    if (offset > (uint64_t)target->len || nbytes > (uint64_t)target->len - offset) {
        PyErr_SetString(PyExc_ValueError, "copy_leaves: a place lies outside the target");
        return -1;
    }
    if (PyObject_GetBuffer(leaf, &source, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return 0;
    }
    bool same = (uint64_t)source.len == nbytes && source.format != NULL && strcmp(source.format, format) == 0;
    if (same && nbytes >= 65536) {
        Py_BEGIN_ALLOW_THREADS
        memcpy((char *)target->buf + offset, source.buf, nbytes);
        Py_END_ALLOW_THREADS
    } else if (same) {
        memcpy((char *)target->buf + offset, source.buf, nbytes);
    }
    PyBuffer_Release(&source);
    return same;
}

static PyObject *core_copy_leaves(PyObject *module, PyObject *args)
{
    PyObject *places, *leaves, *missed = NULL;
    Py_buffer target;
    if (!PyArg_ParseTuple(args, "w*O!O!", &target, &PyTuple_Type, &places, &PyList_Type, &leaves))
        return NULL;
    Py_ssize_t count = PyTuple_Size(places);
    if (count == PyList_Size(leaves))
        missed = PyList_New(0);
    else
        PyErr_SetString(PyExc_ValueError, "copy_leaves: as many leaves as places are needed");
    for (Py_ssize_t i = 0; missed != NULL && i < count; i++) {
        int copied = leaf_copy(&target, PyTuple_GetItem(places, i), PyList_GetItem(leaves, i));
        if (copied < 0 || (copied == 0 && !list_append_new(missed, PyLong_FromSsize_t(i))))
            Py_CLEAR(missed);
    }
    PyBuffer_Release(&target);
    return missed;
}

static PyMethodDef core_methods[] = {
    {"format_control", core_format_control, METH_VARARGS,
     "format_control(fd, id, max_readers, max_slots, keep_slots): lay out a new control file."},
    {"control_nbytes", core_control_nbytes, METH_O, "control_nbytes(max_readers): size of a control file."},
    {"format_board", core_format_board, METH_VARARGS,
     "format_board(fd, (shards, workers, steps, examples, batch_size, buffer_nbytes, state_stride, base_version), "
     "(optimizer, momentum, weight_decay, nesterov), ranges): lay out a board in an empty file."},
    {"copy_leaves", core_copy_leaves, METH_VARARGS,
     "copy_leaves(target, ((offset, nbytes, format), ...), leaves) -> indices of leaves that are not such bytes."},
    {"copy", core_copy, METH_VARARGS, "copy(target, offset, source): one memcpy, without the GIL."},
    {NULL, NULL, 0, NULL},
};

static bool type_add(PyObject *module, PyType_Spec *spec, PyTypeObject **keep)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) != 0)
        return false;
    if (keep != NULL)
        *keep = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return true;
}

static bool module_fill(PyObject *module)
{
    StatusError = PyErr_NewExceptionWithDoc("untorn._core.StatusError", "(code, errno) from the core.", NULL, NULL);
    return StatusError != NULL && PyModule_AddObjectRef(module, "StatusError", StatusError) == 0 &&
           type_add(module, &Attachment_spec, &AttachmentType) && type_add(module, &Hold_spec, &HoldType) &&
           type_add(module, &Draft_spec, &DraftType) && type_add(module, &Board_spec, NULL) &&
           PyModule_AddIntConstant(module, "READER", ROLE_READER) == 0 &&
           PyModule_AddIntConstant(module, "WRITER", ROLE_WRITER) == 0 &&
           PyModule_AddIntConstant(module, "PUBLISHER", ROLE_PUBLISHER) == 0 &&
           PyModule_AddIntConstant(module, "TURN_GRADIENT", TURN_GRADIENT) == 0 &&
           PyModule_AddIntConstant(module, "TURN_IDLE", TURN_IDLE) == 0 &&
           PyModule_AddIntConstant(module, "TURN_STOP", TURN_STOP) == 0 &&
           PyModule_AddIntConstant(module, "TURN_NEED_SLOT", TURN_NEED_SLOT) == 0 &&
           PyModule_AddIntConstant(module, "BOARD_METRICS", BOARD_METRICS) == 0 &&
           PyModule_AddIntConstant(module, "BOARD_ERROR_NBYTES", BOARD_ERROR_NBYTES) == 0 &&
           PyModule_AddIntConstant(module, "BOARD_BUFFER_HEADER_NBYTES", sizeof(struct board_buffer)) == 0 &&
           PyModule_AddIntConstant(module, "LAYOUT", CHANNEL_LAYOUT) == 0 &&
           PyModule_AddIntConstant(module, "HEADER_NBYTES", sizeof(struct slot_header)) == 0;
}

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT, "untorn._core", "The core of untorn, in C: channels, the board and the kernels.", -1,
    core_methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *module = PyModule_Create(&core_module);
    if (module != NULL && !module_fill(module))
        Py_CLEAR(module);
    return module;
}
