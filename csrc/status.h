/* The one table of errors. module.c turns them into exceptions, share/storage_errors.py into messages for people. */
#ifndef UNTORN_STATUS_H
#define UNTORN_STATUS_H

enum status {
    STATUS_OK = 0,
    STATUS_OS,        /* a system call failed: errno says how */
    STATUS_FORMAT,    /* the bytes are not a channel */
    STATUS_DATA,      /* the data file's bytes are not a channel's */
    STATUS_MIXED,     /* the control file of one channel and the data file of another */
    STATUS_NAMING,    /* the same, while the control file's channel is given its names */
    STATUS_OTHER,     /* a channel, but not the one that was asked for */
    STATUS_LAYOUT,    /* a channel of another layout version */
    STATUS_BUSY,      /* another process holds the lock */
    STATUS_NO_ROW,    /* every reader row is taken */
    STATUS_NO_SLOT,   /* every slot is held */
    STATUS_NO_SPACE,  /* the file system has no room for the slot: errno says how */
    STATUS_UNLINKED,  /* the data file's name was removed */
    STATUS_TRUNCATED, /* the data file was shortened: the newest version is lost */
    STATUS_FORKED,    /* this process inherited the publisher by fork, and may not publish */
    STATUS_TIMEOUT,
    STATUS_EMPTY,     /* no item waits */
    STATUS_ENDED,     /* the queue is closed; for a consumer: and empty */
    STATUS_FULL,      /* as many items wait as may */
    STATUS_NO_ROOM,   /* the items that exist leave too few of the queue's bytes */
    STATUS_TOO_LARGE, /* more bytes than the queue may ever have */
    STATUS_BOOT,      /* the file is from before a restart of the machine */
    STATUS_NOT_OWNED, /* the slot belongs to another process by now, or did before a fork */
    STATUS_INTERRUPTED,
};

#endif
