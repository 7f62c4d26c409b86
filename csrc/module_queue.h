/* The objects of queues: module_queue.c has Queue and QueueGate, module_queue_put.c QueueDraft and how a Queue puts,
 * module_queue_take.c QueueItem, QueuePrivate and how a Queue takes. */
#ifndef UNTORN_MODULE_QUEUE_H
#define UNTORN_MODULE_QUEUE_H

#include "module.h"
#include "queue_side.h"

typedef struct queue_object {
    PyObject_HEAD
    struct queue_side *side;
    dev_t device;
    ino_t inode;
    struct queue_object **link, *next; /* this process's queues; `link` is NULL outside that list */
} QueueObject;

static inline struct queue_side *side_of(PyObject *self) { return ((QueueObject *)self)->side; }

/* Methods of Queue. */
PyObject *Queue_begin(PyObject *self, PyObject *args);
PyObject *Queue_put(PyObject *self, PyObject *args);
PyObject *Queue_seal(PyObject *self, PyObject *args);
PyObject *Queue_discard(PyObject *self, PyObject *argument);
PyObject *Queue_put_tree(PyObject *self, PyObject *args);
PyObject *Queue_take(PyObject *self, PyObject *unused);
PyObject *Queue_get_tree(PyObject *self, PyObject *plan);

/* Add the types. */
bool module_add_queue_put(PyObject *module);
bool module_add_queue_take(PyObject *module);

#endif
