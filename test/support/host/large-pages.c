/*
 * Preloaded into Node, tells mapram's addon, and nobody else, that the host's pages are of 16 KiB, as they are on some arm64 hosts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

long sysconf(int name) {
  static long (*real)(int);
  Dl_info caller;
  if (name == _SC_PAGESIZE && dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "/mapram."))
    return 16384;
  if (real == NULL) real = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
  return real(name);
}
