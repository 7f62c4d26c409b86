/* Attachment, Hold, Private and Draft: see module.h. */
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "futex.h"

/* -- Attachment ------------------------------------------------------------------------------------------------- */

/* This process's readers. A channel's file has one of them, and so one row, even if several threads attach at a time,
 * or a signal handler, a finalizer or a fork interrupts: no Python code runs between looking into the list and being in
 * it. Guarded by the GIL. In a free-threaded build the last reference could go while another thread looks, so there
 * nobody looks: attaching twice at the very same time then costs a second row. */

/* Return the reader of this control file, with this id if one is given: damage may have changed the file's. */
static AttachmentObject *reader_find(const struct core *core, int control_fd, const uint8_t *id)
{
#ifndef Py_GIL_DISABLED
    struct stat stat;
    if (fstat(control_fd, &stat) != 0)
        return NULL;
    for (AttachmentObject *reader = core->readers; reader != NULL; reader = reader->next)
        /* a reader that lost its descriptor is no longer attached: in a fork, or because other code closed it */
        if (reader->device == stat.st_dev && reader->inode == stat.st_ino &&
            attachment_has_control(reader->attachment) &&
            (id == NULL || memcmp(reader->attachment->channel.control->id, id, CHANNEL_ID_NBYTES) == 0))
            return reader;
#endif
    return NULL;
}

static void reader_add(struct core *core, AttachmentObject *reader)
{
#ifndef Py_GIL_DISABLED
    struct stat stat;
    if (fstat(reader->attachment->control_fd, &stat) != 0)
        return;
    reader->device = stat.st_dev;
    reader->inode = stat.st_ino;
    reader->link = &core->readers;
    reader->next = core->readers;
    if (core->readers != NULL)
        core->readers->link = &reader->next;
    core->readers = reader;
#endif
}

static void reader_remove(AttachmentObject *reader)
{
    if (reader->link == NULL)
        return;
    *reader->link = reader->next;
    if (reader->next != NULL)
        reader->next->link = reader->link;
}

static PyObject *Attachment_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control_fd", "data_fd", "role", "id", NULL};
    int control_fd, data_fd, role;
    const char *id = NULL;
    Py_ssize_t id_nbytes = CHANNEL_ID_NBYTES;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iii|z#", names, &control_fd, &data_fd, &role, &id, &id_nbytes))
        return NULL;
    if (id != NULL && id_nbytes != CHANNEL_ID_NBYTES) {
        PyErr_Format(PyExc_ValueError, "channel id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    struct core *core = PyType_GetModuleState(type);
    AttachmentObject *self = role == ROLE_READER ? reader_find(core, control_fd, (const uint8_t *)id) : NULL;
    if (self != NULL) {
        close(control_fd);
        close(data_fd);
        return Py_NewRef((PyObject *)self);
    }
    self = PyObject_New(AttachmentObject, type);
    if (self == NULL) {
        close(control_fd);
        close(data_fd);
        return NULL;
    }
    self->attachment = NULL;
    self->link = NULL;
    enum status status =
        attachment_open(control_fd, data_fd, (enum attachment_role)role, (const uint8_t *)id, &self->attachment);
    if (status != STATUS_OK) {
        status_raise(core, status);
        Py_DECREF(self);
        return NULL;
    }
    if (role == ROLE_READER)
        reader_add(core, self);
    return (PyObject *)self;
}

static void Attachment_dealloc(PyObject *self)
{
    struct attachment *attachment = ((AttachmentObject *)self)->attachment;
    reader_remove((AttachmentObject *)self);
    if (attachment != NULL)
        attachment_close(attachment);
    object_free(self);
}

typedef struct {
    PyObject_HEAD
    AttachmentObject *owner;
    struct pin pin;
    uint8_t *writable; /* a private mapping of the version, or NULL: what its Privates export */
} HoldObject;

/* A pin of the newest version, or of the base of another one. */
static PyObject *hold_make(PyObject *self, const struct pin *version)
{
    HoldObject *hold = PyObject_New(HoldObject, core_of(self)->hold_type);
    if (hold == NULL)
        return NULL;
    hold->owner = NULL;
    hold->writable = NULL;
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    enum status status = version == NULL ? attachment_pin(a, &hold->pin) : attachment_pin_base(a, version, &hold->pin);
    if (status != STATUS_OK) {
        status_raise(core_of(self), status);
        Py_DECREF(hold);
        return NULL;
    }
    Py_INCREF(self);
    hold->owner = (AttachmentObject *)self;
    return (PyObject *)hold;
}

static PyObject *Attachment_pin(PyObject *self, PyObject *unused) { return hold_make(self, NULL); }

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

typedef enum status slot_taker(struct attachment *, uint64_t, unsigned *);

/* Take a slot with this room, without the GIL. Signals that keep coming are handled before the next try. */
static PyObject *slot_take(PyObject *self, PyObject *argument, slot_taker *take)
{
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    unsigned slot = 0;
    enum status status;
    do {
        Py_BEGIN_ALLOW_THREADS
        status = take(((AttachmentObject *)self)->attachment, nbytes, &slot);
        Py_END_ALLOW_THREADS
    } while (status == STATUS_INTERRUPTED && PyErr_CheckSignals() == 0);
    if (status == STATUS_INTERRUPTED)
        return NULL;
    return status == STATUS_OK ? PyLong_FromUnsignedLong(slot) : status_raise(core_of(self), status);
}

static PyObject *Attachment_pick(PyObject *self, PyObject *nbytes) { return slot_take(self, nbytes, attachment_pick); }

static PyObject *Attachment_reserve(PyObject *self, PyObject *nbytes)
{
    return slot_take(self, nbytes, attachment_reserve);
}

static bool slot_parse(PyObject *argument, unsigned *slot)
{
    unsigned long value = PyLong_AsUnsignedLong(argument);
    if (!PyErr_Occurred() && value >= CHANNEL_MAX_SLOTS)
        PyErr_Format(PyExc_ValueError, "slot %lu: expected 0 to %u", value, CHANNEL_MAX_SLOTS - 1);
    *slot = (unsigned)value;
    return !PyErr_Occurred();
}

static PyObject *Attachment_unreserve(PyObject *self, PyObject *argument)
{
    unsigned slot;
    if (!slot_parse(argument, &slot))
        return NULL;
    attachment_unreserve(((AttachmentObject *)self)->attachment, slot);
    Py_RETURN_NONE;
}

PyObject *draft_make(AttachmentObject *attachment, unsigned slot)
{
    PyObject *self = (PyObject *)attachment;
    DraftObject *draft = PyObject_New(DraftObject, core_of(self)->draft_type);
    if (draft == NULL)
        return NULL;
    draft->owner = NULL;
    draft->slot = slot;
    enum status status = attachment_lend(((AttachmentObject *)self)->attachment, slot, &draft->address, &draft->nbytes);
    if (status != STATUS_OK) {
        status_raise(core_of(self), status);
        Py_DECREF(draft);
        return NULL;
    }
    Py_INCREF(self);
    draft->owner = (AttachmentObject *)self;
    return (PyObject *)draft;
}

static PyObject *Attachment_draft(PyObject *self, PyObject *argument)
{
    unsigned slot;
    return slot_parse(argument, &slot) ? draft_make((AttachmentObject *)self, slot) : NULL;
}

static bool attachment_may_publish(const struct attachment *a, unsigned slot)
{
    return a->role == ROLE_PUBLISHER && !a->forked && slot < CHANNEL_MAX_SLOTS;
}

/* Write the slot's header; the rest of the version is there already. */
static PyObject *Attachment_finish(PyObject *self, PyObject *args)
{
    unsigned slot;
    unsigned long long version, nbytes, schema_nbytes, schema_id, base = 0;
    if (!PyArg_ParseTuple(args, "IKKKK|K", &slot, &version, &nbytes, &schema_nbytes, &schema_id, &base))
        return NULL;
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    if (!attachment_may_publish(a, slot))
        return status_raise(core_of(self), STATUS_FORKED);
    const struct slot_header header = {
        .version = version,
        .published_ns = clock_wall_ns(),
        .nbytes = nbytes,
        .schema_nbytes = schema_nbytes,
        .schema_id = schema_id,
        .base = base,
    };
    enum status status = attachment_finish(a, slot, &header);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    Py_RETURN_NONE;
}

static PyObject *Attachment_publish(PyObject *self, PyObject *args)
{
    unsigned slot;
    unsigned long long version;
    if (!PyArg_ParseTuple(args, "IK", &slot, &version))
        return NULL;
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    if (!attachment_may_publish(a, slot))
        return status_raise(core_of(self), STATUS_FORKED);
    channel_publish(&a->channel, version, slot);
    Py_RETURN_NONE;
}

static PyObject *Attachment_set_named(PyObject *self, PyObject *argument)
{
    int named = PyObject_IsTrue(argument);
    if (named < 0)
        return NULL;
    ((AttachmentObject *)self)->attachment->named = named != 0;
    Py_RETURN_NONE;
}

static PyObject *Attachment_adopt(PyObject *self, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    enum status status = attachment_adopt(((AttachmentObject *)self)->attachment, (int)fd);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    Py_RETURN_NONE;
}

static PyObject *Attachment_set_naming(PyObject *self, PyObject *argument)
{
    int naming = PyObject_IsTrue(argument);
    if (naming < 0)
        return NULL;
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    if (!attachment_may_publish(a, 0))
        return status_raise(core_of(self), STATUS_FORKED);
    attachment_set_naming(a, naming);
    Py_RETURN_NONE;
}

static PyObject *Attachment_publisher_alive(PyObject *self, PyObject *unused)
{
    bool alive;
    enum status status = attachment_publisher_alive(((AttachmentObject *)self)->attachment, &alive);
    return status == STATUS_OK ? PyBool_FromLong(alive) : status_raise(core_of(self), status);
}

static PyObject *Attachment_reserve_slots(PyObject *self, PyObject *argument)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    unsigned long slots = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (a->role != ROLE_PUBLISHER || a->forked || slots > CHANNEL_MAX_SLOTS) {
        PyErr_Format(PyExc_ValueError, "reserve_slots: the publisher reserves 0 to %d", CHANNEL_MAX_SLOTS);
        return NULL;
    }
    shared_store_relaxed(&a->channel.control->reserve_slots, (uint32_t)slots);
    Py_RETURN_NONE;
}

static PyObject *Attachment_retire(PyObject *self, PyObject *unused)
{
    attachment_retire(((AttachmentObject *)self)->attachment);
    Py_RETURN_NONE;
}

static PyObject *Attachment_abandon(PyObject *self, PyObject *unused)
{
    attachment_abandon(((AttachmentObject *)self)->attachment);
    Py_RETURN_NONE;
}

static PyObject *Attachment_reclaim(PyObject *self, PyObject *unused)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    pthread_mutex_lock(&a->lock);
    const unsigned reclaimed = attachment_reclaim(a);
    pthread_mutex_unlock(&a->lock);
    return PyLong_FromUnsignedLong(reclaimed);
}

static PyObject *Attachment_read_journal(PyObject *self, PyObject *unused)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    return journal_read(&a->journal, &a->lock);
}

static PyObject *Attachment_claim_spare(PyObject *self, PyObject *argument)
{
    unsigned long long most = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    uint64_t nbytes;
    const uint64_t claimed = attachment_claim_spare(((AttachmentObject *)self)->attachment, most, &nbytes);
    return Py_BuildValue("(KK)", (unsigned long long)claimed, (unsigned long long)nbytes);
}

static PyObject *Attachment_release_spare(PyObject *self, PyObject *argument)
{
    unsigned long long claimed = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    attachment_release_spare(((AttachmentObject *)self)->attachment, claimed);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Writers in training: give one more slot this room; change no slot that others may have picked. */
static PyObject *Attachment_grow(PyObject *self, PyObject *argument)
{
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    enum status status;
    do { /* signals that keep coming are handled before the next try */
        Py_BEGIN_ALLOW_THREADS
        status = attachment_grow(((AttachmentObject *)self)->attachment, nbytes);
        Py_END_ALLOW_THREADS
    } while (status == STATUS_INTERRUPTED && PyErr_CheckSignals() == 0);
    if (status == STATUS_INTERRUPTED)
        return NULL;
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    Py_RETURN_NONE;
}

static PyObject *Attachment_rows(PyObject *self, PyObject *unused)
{
    struct attachment *a = ((AttachmentObject *)self)->attachment;
    PyObject *list = PyList_New(0);
    uint32_t high_water = shared_load_acquire(&a->channel.shared->high_water);
    for (uint32_t row = 1; list != NULL && row <= high_water && row <= a->channel.max_readers; row++) {
        const struct reader_row *line = &a->channel.rows[row];
        bool alive = true;
        enum status status = row == a->row ? STATUS_OK : attachment_row_alive(a, row, &alive);
        if (status != STATUS_OK) {
            status_raise(core_of(self), status);
            Py_DECREF(list);
            return NULL;
        }
        if (!alive)
            continue;
        PyObject *item = Py_BuildValue("(IILK)", row, shared_load_relaxed(&line->pid),
                                       (long long)shared_load_relaxed(&line->attached_ns),
                                       (unsigned long long)shared_load_acquire(&line->held));
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
        unsigned long long offset = shared_load_acquire(&extent->offset),
                           capacity = shared_load_acquire(&extent->capacity);
        struct slot_header header = {0};
        if (capacity == 0)
            continue;
        if (!attachment_has_data(a) ||
            pread(a->data_fd, &header, sizeof header, (off_t)offset) != (ssize_t)sizeof header)
            header.version = 0;
        if (!list_append_new(list, Py_BuildValue("(IKKKL)", slot, offset, capacity, (unsigned long long)header.version,
                                                 (long long)header.published_ns)))
            Py_CLEAR(list);
    }
    return list;
}

/* Return the number of a descriptor, -1 for none; OSError if it leads to another file by now. */
static PyObject *descriptor_number(int fd, bool has)
{
    if (fd < 0 || has)
        return PyLong_FromLong(fd);
    PyObject *cause = Py_BuildValue("(is)", EBADF,
                                    "something in this process closed the channel's descriptors, or gave "
                                    "their numbers to other files (os.closerange, os.dup2, a daemoniser); attach or "
                                    "publish after that");
    if (cause != NULL)
        PyErr_SetObject(PyExc_OSError, cause);
    Py_XDECREF(cause);
    return NULL;
}

static PyObject *control_fd_make(const struct attachment *a)
{
    return descriptor_number(a->control_fd, attachment_has_control(a));
}

static PyObject *data_fd_make(const struct attachment *a)
{
    return descriptor_number(a->data_fd, attachment_has_data(a));
}

static PyObject *id_make(const struct control *control)
{
    return PyBytes_FromStringAndSize((const char *)control->id, sizeof control->id);
}

static uint64_t latest_of(const AttachmentObject *self) { return channel_latest(&self->attachment->channel); }
static struct control *control_of(const AttachmentObject *self) { return self->attachment->channel.control; }

#define ATTACHMENT_FIELDS(FIELD)                                                                                     \
    FIELD(Attachment, version, PyLong_FromUnsignedLongLong, latest_version(latest_of(self)))                         \
    FIELD(Attachment, latest_slot, PyLong_FromUnsignedLong, latest_slot(latest_of(self)))                            \
    FIELD(Attachment, closed, PyBool_FromLong, shared_load_acquire(&control_of(self)->state) == CHANNEL_CLOSED)      \
    FIELD(Attachment, naming, PyBool_FromLong, shared_load_acquire(&control_of(self)->state) == CHANNEL_NAMING)      \
    FIELD(Attachment, forked, PyBool_FromLong, self->attachment->forked)                                             \
    FIELD(Attachment, control_fd, control_fd_make, self->attachment)                                                 \
    FIELD(Attachment, data_fd, data_fd_make, self->attachment)                                                       \
    FIELD(Attachment, max_readers, PyLong_FromUnsignedLong, self->attachment->channel.max_readers)                   \
    FIELD(Attachment, max_slots, PyLong_FromUnsignedLong, self->attachment->channel.max_slots)                       \
    FIELD(Attachment, row, PyLong_FromUnsignedLong, self->attachment->row)                                           \
    FIELD(Attachment, publisher_pid, PyLong_FromUnsignedLong, shared_load_relaxed(&control_of(self)->publisher_pid)) \
    FIELD(Attachment, created_ns, PyLong_FromLongLong, control_of(self)->created_ns)                                 \
    FIELD(Attachment, has_news, PyBool_FromLong, journal_has_news(&self->attachment->journal))                       \
    FIELD(Attachment, role, PyLong_FromLong, (long)self->attachment->role)                                           \
    FIELD(Attachment, id, id_make, control_of(self))
ATTACHMENT_FIELDS(CORE_GETTER)

static PyObject *Attachment_seal(PyObject *self, PyObject *argument)
{
    if (!PyObject_TypeCheck(argument, core_of(self)->draft_type) ||
        ((DraftObject *)argument)->owner != (AttachmentObject *)self) {
        PyErr_SetString(PyExc_TypeError, "seal: expected a Draft of this attachment");
        return NULL;
    }
    const DraftObject *draft = (const DraftObject *)argument;
    enum status status = attachment_seal(((AttachmentObject *)self)->attachment, draft->slot, draft->address);
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    Py_RETURN_NONE;
}

static PyMethodDef Attachment_methods[] = {
    {"pin", Attachment_pin, METH_NOARGS,
     "pin($self, /)\n--\n\n"
     "Pin the newest version. The Hold exports its bytes, read-only."},
    {"wait", Attachment_wait, METH_VARARGS,
     "wait($self, seen, timeout_s, /)\n--\n\n"
     "Wait for a version newer than `seen`; return whether there is one."},
    {"pick", Attachment_pick, METH_O,
     "pick($self, nbytes, /)\n--\n\n"
     "Return a slot with at least this room that no reader can see."},
    {"reserve", Attachment_reserve, METH_O,
     "reserve($self, nbytes, /)\n--\n\n"
     "Give this much room to a slot that pick() leaves alone until unreserve(); other threads may pick meanwhile."},
    {"unreserve", Attachment_unreserve, METH_O,
     "unreserve($self, slot, /)\n--\n\n"
     "Let pick() have the slot, as soon as no version refers to it."},
    {"claim_spare", Attachment_claim_spare, METH_O,
     "claim_spare($self, most, /)\n--\n\n"
     "Let pick() leave free slots alone that are larger than this; return them as bits, and how many bytes they have."},
    {"release_spare", Attachment_release_spare, METH_O,
     "release_spare($self, claimed, /)\n--\n\n"
     "Give the space of these slots back; other threads may pick meanwhile."},
    {"grow", Attachment_grow, METH_O,
     "grow($self, nbytes, /)\n--\n\n"
     "Give space of at least this size to one more slot."},
    {"draft", Attachment_draft, METH_O,
     "draft($self, slot, /)\n--\n\n"
     "Return the slot's bytes, writable."},
    {"seal", Attachment_seal, METH_O,
     "seal($self, draft, /)\n--\n\n"
     "Let later writes through the draft go to a private copy."},
    {"finish", Attachment_finish, METH_VARARGS,
     "finish($self, slot, version, nbytes, schema_nbytes, schema_id, base=0, /)\n--\n\n"
     "Write the header of a slot that is otherwise complete. `base`: version << 6 | slot of the version that it "
     "changes, which is kept as long."},
    {"publish", Attachment_publish, METH_VARARGS,
     "publish($self, slot, version, /)\n--\n\n"
     "Make a finished slot the latest."},
    {"publish_tree", version_publish_tree, METH_VARARGS,
     "publish_tree($self, plan, value, schema_id, /)\n--\n\n"
     "Publish a value of the plan's structure as the next version; return `latest`. Return 0, with nothing "
     "published, if it has another structure, or for any trouble: publishing it step by step says which."},
    {"begin_tree", version_begin_tree, METH_VARARGS,
     "begin_tree($self, plan, copy, /)\n--\n\n"
     "Return a slot with the bytes of the newest version, which has the plan's structure, without the elements of its "
     "arrays if these are not to be copied; None for any trouble."},
    {"end_tree", version_end_tree, METH_VARARGS,
     "end_tree($self, plan, draft, schema_id, /)\n--\n\n"
     "Publish a slot that begin_tree() returned as the next version; return `latest`."},
    {"set_named", Attachment_set_named, METH_O,
     "set_named($self, named, /)\n--\n\n"
     "Set whether pick() reports that the data file lost its name."},
    {"adopt", Attachment_adopt, METH_O,
     "adopt($self, data_fd, /)\n--\n\n"
     "Take over the data file of a publisher that was opened with -1. Owns the descriptor."},
    {"set_naming", Attachment_set_naming, METH_O,
     "set_naming($self, naming, /)\n--\n\n"
     "Set whether the channel's names are being given just now."},
    {"publisher_alive", Attachment_publisher_alive, METH_NOARGS,
     "publisher_alive($self, /)\n--\n\n"
     "Return whether the kernel says that a publisher is alive."},
    {"reserve_slots", Attachment_reserve_slots, METH_O,
     "reserve_slots($self, slots, /)\n--\n\n"
     "Set the number of slots that readers with many versions leave alone."},
    {"retire", Attachment_retire, METH_NOARGS,
     "retire($self, /)\n--\n\n"
     "End publishing: mark the channel closed and release the lock."},
    {"abandon", Attachment_abandon, METH_NOARGS,
     "abandon($self, /)\n--\n\n"
     "Release the publisher's lock, as if the process had been killed."},
    {"reclaim", Attachment_reclaim, METH_NOARGS,
     "reclaim($self, /)\n--\n\n"
     "Clear the rows of dead readers; return how many held something."},
    {"read_journal", Attachment_read_journal, METH_NOARGS,
     "read_journal($self, /)\n--\n\n"
     "Return a list of (kind, pid, slots, nbytes, returned) of what happened since the last call, and how many "
     "more there were; see journal.h."},
    {"rows", Attachment_rows, METH_NOARGS,
     "rows($self, /)\n--\n\n"
     "Return (row, pid, attached_ns, held bits) of each living reader."},
    {"slots", Attachment_slots, METH_NOARGS,
     "slots($self, /)\n--\n\n"
     "Return (slot, offset, capacity, version, published_ns) of each slot that has space."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Attachment_getset[] = {ATTACHMENT_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot Attachment_slots_[] = {
    {Py_tp_doc, "Attachment(control_fd, data_fd, role, id=None)\n--\n\n"
                "One process's side of a channel, of the channel with this `id` if one is given. A reader gets the "
                "attachment that "
                "this process already has, if any. Owns both descriptors, also when it fails."},
    {Py_tp_new, Attachment_new},
    {Py_tp_dealloc, Attachment_dealloc},
    {Py_tp_methods, Attachment_methods},
    {Py_tp_getset, Attachment_getset},
    {0, NULL},
};
static PyType_Spec Attachment_spec = {"untorn._core.Attachment", sizeof(AttachmentObject), 0, Py_TPFLAGS_DEFAULT,
                                      Attachment_slots_};

/* -- Hold, Private and Draft ------------------------------------------------------------------------------------- */

static void Hold_dealloc(PyObject *self)
{
    HoldObject *hold = (HoldObject *)self;
    if (hold->writable != NULL)
        munmap(hold->writable, hold->pin.nbytes);
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

typedef struct {
    PyObject_HEAD
    HoldObject *hold; /* it has the mapping */
} PrivateObject;

/* One mapping for all values of a hold, or a tree of tensors would need one for each. */
static PyObject *Hold_private(PyObject *self, PyObject *unused)
{
    HoldObject *hold = (HoldObject *)self;
    enum status status = STATUS_OK;
    OBJECT_LOCK(self);
    if (hold->writable == NULL)
        status = attachment_map_private(hold->owner->attachment, &hold->pin, &hold->writable);
    OBJECT_UNLOCK();
    if (status != STATUS_OK)
        return status_raise(core_of(self), status);
    PrivateObject *made = PyObject_New(PrivateObject, core_of(self)->private_type);
    if (made != NULL)
        made->hold = (HoldObject *)Py_NewRef(self);
    return (PyObject *)made;
}

static void Private_dealloc(PyObject *self)
{
    Py_DECREF(((PrivateObject *)self)->hold);
    object_free(self);
}

static int Private_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const HoldObject *hold = ((PrivateObject *)self)->hold;
    return PyBuffer_FillInfo(view, self, hold->writable, (Py_ssize_t)hold->pin.nbytes, 0, flags);
}

static PyType_Slot Private_slots[] = {
    {Py_tp_doc, "One pinned version, writable: pages that are written become its Hold's own."},
    {Py_tp_dealloc, Private_dealloc},
    {Py_bf_getbuffer, Private_getbuffer},
    {0, NULL},
};
static PyType_Spec Private_spec = {"untorn._core.Private", sizeof(PrivateObject), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, Private_slots};

/* The schema is text, which has no zero byte, and a hole of a sparse file begins with one: so the copied bytes are
 * there, whatever size the header claims. */
static PyObject *Hold_schema(PyObject *self, PyObject *unused)
{
    const struct pin *pin = &((HoldObject *)self)->pin;
    const char *text = (const char *)pin->address + sizeof(struct slot_header);
    if (memchr(text, 0, pin->schema_nbytes) != NULL)
        return status_raise(core_of(self), STATUS_FORMAT);
    return PyBytes_FromStringAndSize(text, (Py_ssize_t)pin->schema_nbytes);
}

static PyObject *Hold_base(PyObject *self, PyObject *unused)
{
    return hold_make((PyObject *)((HoldObject *)self)->owner, &((HoldObject *)self)->pin);
}

static PyMethodDef Hold_methods[] = {
    {"base", Hold_base, METH_NOARGS,
     "base($self, /)\n--\n\n"
     "Pin the version that this one changes."},
    {"schema", Hold_schema, METH_NOARGS,
     "schema($self, /)\n--\n\n"
     "Return a copy of the schema's bytes."},
    {"private", Hold_private, METH_NOARGS,
     "private($self, /)\n--\n\n"
     "Return the same bytes, writable; no other process sees what is written."},
    {NULL, NULL, 0, NULL},
};

#define HOLD_FIELDS(FIELD)                                                           \
    FIELD(Hold, version, PyLong_FromUnsignedLongLong, self->pin.version)             \
    FIELD(Hold, nbytes, PyLong_FromUnsignedLongLong, self->pin.nbytes)               \
    FIELD(Hold, schema_nbytes, PyLong_FromUnsignedLongLong, self->pin.schema_nbytes) \
    FIELD(Hold, schema_id, PyLong_FromUnsignedLongLong, self->pin.schema_id)         \
    FIELD(Hold, published_ns, PyLong_FromLongLong, self->pin.published_ns)           \
    FIELD(Hold, slot, PyLong_FromUnsignedLong, self->pin.slot)                       \
    FIELD(Hold, base_version, PyLong_FromUnsignedLongLong, latest_version(self->pin.base))
HOLD_FIELDS(CORE_GETTER)

static PyGetSetDef Hold_getset[] = {HOLD_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot Hold_slots[] = {
    {Py_tp_doc, "One pinned version. Exports its bytes read-only; the pin ends when the last view of it dies."},
    {Py_tp_dealloc, Hold_dealloc},
    {Py_tp_methods, Hold_methods},
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

static const struct core_constant channel_constants[] = {
    {"READER", ROLE_READER},
    {"WRITER", ROLE_WRITER},
    {"PUBLISHER", ROLE_PUBLISHER},
    {"LAYOUT", CHANNEL_LAYOUT},
    {"HEADER_NBYTES", sizeof(struct slot_header)},
    {"DATA_HEADER_NBYTES", sizeof(struct data_header)},
    CORE_CONSTANT(JOURNAL_GREW),
    CORE_CONSTANT(JOURNAL_RECLAIMED),
    CORE_CONSTANT(JOURNAL_REAPED),
    {NULL, 0},
};

bool module_add_channel(PyObject *module)
{
    struct core *core = core_of_module(module);
    return type_add(module, &Attachment_spec, &core->attachment_type) &&
           type_add(module, &Hold_spec, &core->hold_type) && type_add(module, &Private_spec, &core->private_type) &&
           type_add(module, &Draft_spec, &core->draft_type) && constants_add(module, channel_constants);
}
