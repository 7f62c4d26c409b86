/* Ending with another process, whatever this one is doing.
 *
 * The other process keeps the only end for writing of a pipe. When it is gone, killed or not, the kernel closes that
 * end and sends SIGIO to this process, which starts an alarm; the alarm's default action ends it. There is no thread,
 * so the process stays fit for forking, and nothing runs until then.
 */
#ifndef UNTORN_LIFELINE_H
#define UNTORN_LIFELINE_H

/* Follow the pipe, open for reading; the descriptor stays open. Once nobody has it open for writing, this process ends
 * after `grace_s` seconds, if it has not ended by itself. Takes SIGIO, and then SIGALRM. 0, or -1 with errno set. */
int lifeline_follow(int fd, unsigned grace_s);

#endif
