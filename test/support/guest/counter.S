/*
 * The whole program of the tests' guest under KVM, in place of a BIOS: it counts on the serial console and goes on checking
 * that its memory is what it was, as init.c does under TCG. It is small and needs no system, because some hosts' KVM interprets
 * a guest's every instruction.
 *
 * Lines on the console: "count N" 18 times a second, "sum ok N" or "sum BAD N" at every fifth count.
 * A 64 KiB image that ends at 4 GiB, where an x86 processor starts. The test fills memory from 1 MiB on before it runs.
 */
    .equ STACK, 0x7000
    .equ EXPECTED, 0x8000  /* the sum that memory had at first */
    .equ MEMORY_END, 0x8004
    .equ AREA, 0x10000  /* 16 pages; each holds the last count */
    .equ AREA_END, 0x20000
    .equ SERIAL, 0x3f8

    .globl _start
    .text
    .code32
_start:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $STACK, %esp

    mov $SERIAL + 3, %dx  /* 115200 baud, 8N1 */
    mov $0x80, %al
    out %al, %dx
    mov $SERIAL, %dx
    mov $1, %al
    out %al, %dx
    mov $SERIAL + 1, %dx
    xor %eax, %eax
    out %al, %dx
    mov $SERIAL + 3, %dx
    mov $3, %al
    out %al, %dx
    mov $SERIAL + 1, %dx
    xor %eax, %eax
    out %al, %dx

    mov $0x34, %al  /* PIT, channel 0: from 65535 down to 0, again and again */
    out %al, $0x43
    xor %eax, %eax
    out %al, $0x40
    out %al, $0x40

    xor %ebp, %ebp  /* the count */
    mov $AREA, %edi
1:  mov %ebp, (%edi)
    add $4096, %edi
    cmp $AREA_END, %edi
    jb 1b
    call size_memory
    call sum
    mov %eax, EXPECTED

tick:
    call wait
    mov $AREA, %edi  /* memory and processor of different moments would disagree here */
1:  cmp %ebp, (%edi)
    je 2f
    mov $torn, %esi
    call print
2:  lea 1(%ebp), %eax
    mov %eax, (%edi)
    add $4096, %edi
    cmp $AREA_END, %edi
    jb 1b
    inc %ebp
    mov $count, %esi
    mov %ebp, %eax
    call print_line

    mov %ebp, %eax
    xor %edx, %edx
    mov $5, %ecx
    div %ecx
    test %edx, %edx
    jnz tick
    mov %eax, %ebx
    call sum
    mov $ok, %esi
    cmp EXPECTED, %eax
    je 3f
    mov $bad, %esi
3:  mov %ebx, %eax
    call print_line
    jmp tick

/* Where memory below 4 GiB ends: the CMOS has what lies above 16 MiB, in 64 KiB. */
size_memory:
    mov $0x35, %al
    out %al, $0x70
    in $0x71, %al
    mov %al, %ah
    mov $0x34, %al
    out %al, $0x70
    in $0x71, %al
    movzwl %ax, %eax
    shl $16, %eax
    add $0x1000000, %eax
    mov %eax, MEMORY_END
    ret

/* Sums a word of some page in every 1 MiB; order matters. Result in eax. */
sum:
    xor %eax, %eax
    mov $0x100000, %edi
1:  rol $1, %eax
    add (%edi), %eax
    add $0x101004, %edi
    cmp MEMORY_END, %edi
    jb 1b
    ret

/* Waits for the PIT to begin anew: at most 55 ms. */
wait:
    mov $0xffff, %ecx
1:  xor %eax, %eax
    out %al, $0x43
    in $0x40, %al
    mov %al, %bl
    in $0x40, %al
    mov %al, %bh
    movzwl %bx, %ebx
    cmp %ecx, %ebx
    mov %ebx, %ecx
    jbe 1b
    ret

/* Prints the text at esi and the number in eax as a line. */
print_line:
    push %eax
    call print
    pop %eax
    mov $10, %ecx
    push $0  /* ends the digits */
1:  xor %edx, %edx
    div %ecx
    add $'0', %edx
    push %edx
    test %eax, %eax
    jnz 1b
2:  pop %eax
    test %eax, %eax
    jz 3f
    call put
    jmp 2b
3:  mov $'\n', %al
  /* falls through */

/* Sends the character in al. */
put:
    mov %al, %ah
    mov $SERIAL + 5, %dx
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    mov %ah, %al
    mov $SERIAL, %dx
    out %al, %dx
    ret

/* Prints the text at esi. */
print:
    mov (%esi), %al
    test %al, %al
    jz 1f
    call put
    inc %esi
    jmp print
1:  ret

count: .asciz "count "
ok: .asciz "sum ok "
bad: .asciz "sum BAD "
torn: .asciz "BAD: the tick area is torn\n"

    .balign 8
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff  /* flat code and data; marked as accessed, for ROM cannot be */
gdt_end:
gdtr: .word gdt_end - gdt - 1
    .long gdt

    .code16
protect:
    cli
    lgdtl %cs:(gdtr - _start)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $8, $_start

    .org 0xfff0
    jmp protect
    .org 0x10000
