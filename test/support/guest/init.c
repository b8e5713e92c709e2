/*
 * The whole user space of the tests' guest: it fills memory with known content, counts on the serial console, and
 * goes on checking that its memory is what it wrote.
 *
 * Kernel command line: mib=N (memory to fill, default 64).
 * Lines on the console: "ready SUM", "count N" ten times a second, "sum ok N" or "sum BAD N" after each full check.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define TICK_PAGES 128 /* pages that are rewritten at every count */

static uint64_t random_state = 0x6d617072616d3136;

static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

/* A mix of what guests hold: random pages, zero pages, long zero runs, one repeated byte, one byte in an empty page. */
static void fill(uint64_t *memory, size_t pages) {
  for (size_t page = 0; page < pages; page++) {
    uint64_t *words = memory + page * (PAGE / 8);
    if (page / 256 % 4 == 3) continue;
    switch (page % 5) {
      case 0:
      case 1:
        for (size_t i = 0; i < PAGE / 8; i++) words[i] = next_random();
        break;
      case 2:
        memset(words, (int)(page & 0xff), PAGE);
        break;
      case 3:
        memset(words, 0, PAGE);
        break;
      default:
        words[next_random() % (PAGE / 8)] = page;
    }
  }
}

/* Order matters: a page in another page's place changes the sum. */
static uint64_t sum(const uint64_t *memory, size_t pages) {
  uint64_t total = 0;
  for (size_t i = 0; i < pages * (PAGE / 8); i++) total = (total << 1 | total >> 63) + memory[i];
  return total;
}

/* Every page of the tick area holds the last count; memory and CPU state of different moments would disagree here. */
static int tick_is_whole(const uint64_t *area, uint64_t count) {
  for (size_t page = 0; page < TICK_PAGES; page++)
    if (area[page * (PAGE / 8)] != count) return 0;
  return 1;
}

static uint64_t *allocate(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    puts("no memory");
    for (;;) pause();
  }
  return memory;
}

int main(void) {
  const char *mib = getenv("mib");
  size_t pages = (size_t)(mib ? atoi(mib) : 64) * 256;
  struct utsname system;
  struct sysinfo info;
  setvbuf(stdout, NULL, _IOLBF, 0);
  uname(&system);
  sysinfo(&info);
  printf("\n%s %s, %lu MiB of memory\n", system.sysname, system.release, (unsigned long)(info.totalram >> 20));

  uint64_t *memory = allocate(pages * PAGE);
  uint64_t *area = allocate(TICK_PAGES * PAGE);
  fill(memory, pages);
  uint64_t expected = sum(memory, pages);
  printf("ready %016lx\n", expected);

  for (uint64_t count = 1, checks = 0;; count++) {
    struct timespec tenth = {0, 100000000};
    nanosleep(&tenth, NULL);
    int whole = tick_is_whole(area, count - 1);
    for (size_t page = 0; page < TICK_PAGES; page++) area[page * (PAGE / 8)] = count;
    printf("count %lu\n", count);
    if (!whole) printf("sum BAD %lu: tick area is torn\n", checks);
    if (count % 5 == 0) {
      checks++;
      printf("sum %s %lu\n", sum(memory, pages) == expected ? "ok" : "BAD", checks);
    }
  }
}
