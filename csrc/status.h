/* The one table of what can go wrong. module.c turns it into exceptions, and share/obstacles.py into what people
 * read. */
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
    STATUS_UNLINKED,  /* somebody removed the data file's name */
    STATUS_TRUNCATED, /* somebody shortened the data file: the newest version is lost */
    STATUS_FORKED,    /* this process inherited the publisher by fork, and may not publish */
    STATUS_TIMEOUT,
    STATUS_INTERRUPTED,
};

#endif
