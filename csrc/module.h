/* The Python interface of the core: declarations that the files module*.c share. Only they include Python.h.
 *
 *     module_channel.c   Attachment   one process's side of a channel (attachment.h)
 *                        Hold         a pinned version; exports its bytes, read-only; unpins with its last view
 *                        Private      a pinned version, writable: what is written stays with its Hold
 *                        Draft        a slot being written; exports its bytes, writable
 *     module_version.c   versions with the structure of the one before, published and edited in one call each
 *     module_waiting.c   Watch        sleeps until one of several channels has something newer (waiting.h)
 *     module_queue.c     Queue        one process's side of a queue (queue_side.h)
 *                        QueueGate    what a Watch waits for at a queue
 *     module_queue_put.c QueueDraft   a slot being written; exports its bytes, writable
 *     module_queue_take.c QueueItem   an item that was taken; exports its bytes, read-only; ends with its last view
 *                        QueuePrivate the same, writable: what is written stays with its QueueItem
 *     module_tree.c      TreePlan     where a tree's leaves lie: channels and queues write and read it in one call
 *     module_board.c     Board        sync training's board (board.h); exports all its bytes, writable
 *     module_link.c      Link         a thread that exchanges a board's sums with other nodes (link.h)
 *     module_frozen.c    FrozenTable  a dict in flat memory, looked up in place (module_frozen.h)
 *     module_block.c     Block        a context manager over a generator, with no gap for an interrupt
 *     module_copy.c      copy, copy_leaves: bytes and a tree's leaves, gradients included, into shared memory
 *     module_step.c      step_arrays: a step of an optimizer on arrays of this process (kernels.h)
 *     module_sibling.c   fork_sibling: fork a child of this process's parent (sibling.h); follow_lifeline: end with
 *                        another process (lifeline.h)
 *     module.c           StatusError  (code, errno): the error, from the one table of status.h. The Python layer
 *                                     above knows the names of things and turns it into messages for people
 *                                     (share/storage_errors.py). A system call that failed is an OSError at once.
 *
 * The buffer protocol carries lifetimes: NumPy keeps the object that exported the memory as an array's base, so a view
 * of a view of a leaf keeps its Hold alive. The GIL is released around every wait and every large copy.
 */
#ifndef UNTORN_MODULE_H
#define UNTORN_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "attachment.h"

typedef struct attachment_object {
    PyObject_HEAD
    struct attachment *attachment;
    /* for a reader: its control file, and its place among this process's readers; `link` is NULL outside that list */
    dev_t device;
    ino_t inode;
    struct attachment_object **link, *next;
} AttachmentObject;

/* A slot that is being written. */
typedef struct {
    PyObject_HEAD
    AttachmentObject *owner;
    unsigned slot;
    uint8_t *address;
    uint64_t nbytes;
} DraftObject;

PyObject *draft_make(AttachmentObject *attachment, unsigned slot);

/* Methods of Attachment that do several steps in one call: see module_version.c. */
PyObject *version_publish_tree(PyObject *attachment, PyObject *args);
PyObject *version_begin_tree(PyObject *attachment, PyObject *args);
PyObject *version_end_tree(PyObject *attachment, PyObject *args);

struct board;
/* The board of a Board object; the caller has checked its type. It is valid for as long as the object is. */
const struct board *board_of(PyObject *object);

/* The module's state: the Python objects that the module owns. None of them is static, so each module object that is
 * made of the extension has its own types. */
struct core {
    PyObject *status_error;
    PyTypeObject *attachment_type, *hold_type, *private_type, *draft_type;
    PyTypeObject *frozen_table_type, *frozen_iterator_type, *frozen_memory_type, *frozen_builder_type,
        *frozen_part_type;
    PyTypeObject *board_type, *tree_plan_type, *queue_type, *queue_gate_type, *queue_draft_type, *queue_item_type,
        *queue_private_type;
    struct queue_object *queues; /* the first of this process's queues, see module_queue.c */
    AttachmentObject *readers;   /* the first of this process's readers, see module_channel.c */
};

/* The state, by the module, by an object whose class the module made, or by a class derived from one of the module's;
 * the last is NULL with an exception set if it is not. */
struct core *core_of_module(PyObject *module);
static inline struct core *core_of(PyObject *object) { return PyType_GetModuleState(Py_TYPE(object)); }
struct core *core_of_class(PyTypeObject *type);

/* Free-threaded builds have no GIL: there this guards the fields of an object that threads change. Elsewhere the GIL
 * does. */
#ifdef Py_GIL_DISABLED
#define OBJECT_LOCK(object) Py_BEGIN_CRITICAL_SECTION(object)
#define OBJECT_UNLOCK() Py_END_CRITICAL_SECTION()
#else
#define OBJECT_LOCK(object) {
#define OBJECT_UNLOCK() }
#endif

/* Raise the exception of a status, and return NULL: OSError by errno for STATUS_OS, StatusError for all others. */
PyObject *status_raise(const struct core *core, enum status status);
/* Do the last step of tp_dealloc: an object of a heap type owns a reference to it. */
void object_free(PyObject *self);
/* Return the journal's entries as a list of (kind, pid, slots, nbytes, returned), and how many more there were; clear
 * it. The lock guards it. */
struct journal;
PyObject *journal_read(struct journal *journal, pthread_mutex_t *lock);
/* Append a new reference, which is taken over; false with an exception set, also if `item` is NULL. */
bool list_append_new(PyObject *list, PyObject *item);
/* Make a type and add it to the module; `keep`, if not NULL, gets a reference of its own. */
bool type_add(PyObject *module, PyType_Spec *spec, PyTypeObject **keep);

struct core_constant {
    const char *name;
    long value;
};
#define CORE_CONSTANT(name) {#name, (long)(name)}
/* The array ends with a name that is NULL. */
bool constants_add(PyObject *module, const struct core_constant *constants);

/* A type's read-only fields are one table: `#define HOLD_FIELDS(FIELD)` has a line FIELD(Hold, name, make, value)
 * for each, where make(value) is the new object, and `self` the HoldObject. The table, given CORE_GETTER, is the
 * functions; given CORE_GETSET, the entries of the type's PyGetSetDef. tests/unit/test_core_stub.py compares
 * _core.pyi with them. */
#define CORE_GETTER(type, name, make, value)                           \
    static PyObject *type##_get_##name(PyObject *object, void *unused) \
    {                                                                  \
        const type##Object *self = (const type##Object *)object;       \
        return make(value);                                            \
    }
#define CORE_GETSET(type, name, make, value) {#name, type##_get_##name, NULL, NULL, NULL},

/* The gate that a QueueGate stands for; NULL in a forked child that has no queue any more. */
struct queue_gate;
struct queue_gate *gate_of(PyObject *object);

/* Each adds its types, functions and constants. */
bool module_add_channel(PyObject *module);
bool module_add_queue(PyObject *module);
bool module_add_tree(PyObject *module);
bool module_add_board(PyObject *module);
bool module_add_link(PyObject *module);
bool module_add_frozen(PyObject *module);
bool module_add_waiting(PyObject *module);
bool module_add_block(PyObject *module);
bool module_add_copy(PyObject *module);
bool module_add_step(PyObject *module);
bool module_add_sibling(PyObject *module);

#endif
