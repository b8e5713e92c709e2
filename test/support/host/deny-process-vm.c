/*
 * Runs a program that is denied process_vm_readv and process_vm_writev, as Docker's seccomp profile did it: EPERM. With --mem it is
 * also denied to open existing files for reading and writing, and so /proc/PID/mem.
 * deny-process-vm [--mem] PROGRAM ARGUMENT...
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define DENY BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

int main(int count, char **words) {
  struct sock_filter calls[] = {
      LOAD(nr),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_writev, 0, 1),
      DENY,
      ALLOW,
  };
  struct sock_filter opens[] = {
      LOAD(nr),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 4),
      LOAD(args[2]),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, O_ACCMODE | O_CREAT),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, O_RDWR, 0, 1),
      DENY,
      ALLOW,
  };
  struct sock_fprog no_calls = {sizeof calls / sizeof *calls, calls};
  struct sock_fprog no_opens = {sizeof opens / sizeof *opens, opens};
  int mem = count > 1 && strcmp(words[1], "--mem") == 0;
  words += 1 + mem;
  if (count < 2 + mem) return 2;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &no_calls) != 0 ||
      (mem && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &no_opens) != 0)) {
    perror("seccomp");
    return 2;
  }
  execvp(words[0], words);
  perror(words[0]);
  return 2;
}
