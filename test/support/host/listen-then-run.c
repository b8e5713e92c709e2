/*
 * Runs a program that inherits, as descriptor 3, a socket on which another process listens. So do management programs
 * that hand QEMU its QMP socket: the credentials of its peer then name them and not QEMU.
 * listen-then-run SOCKET PROGRAM ARGUMENT...
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* The listener lives as long as the program does. */
static int listen_and_wait(int fd, int told) {
  if (listen(fd, 8) != 0) return 2;
  if (write(told, "", 1) != 1) return 2;
  close(told);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) pause();
}

int main(int count, char **words) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int told[2];
  char byte;
  if (count < 3 || strlen(words[1]) >= sizeof address.sun_path) return 2;
  strcpy(address.sun_path, words[1]);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || pipe(told) != 0) return 2;
  pid_t child = fork();
  if (child < 0) return 2;
  if (child == 0) return listen_and_wait(fd, told[1]);
  if (read(told[0], &byte, 1) != 1) return 2;
  close(told[0]);
  close(told[1]);
  if (fd != 3 && (dup2(fd, 3) != 3 || close(fd) != 0)) return 2;
  execvp(words[2], words + 2);
  perror(words[2]);
  return 2;
}
