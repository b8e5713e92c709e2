import { describe, expect, it } from 'vitest';
import { parseRamBlocks } from './ram-blocks.ts';

// Answers of QEMU 10.0.2: q35 with a virtio-mem of 1 GiB, and hugetlbfs.
const HEADER =
  '              Block Name    PSize              Offset               Used              Total                HVA  RO\n';
const Q35 = `${HEADER}        0000:00:03.0/vm0    4 KiB  0x0000000000000000 0x0000000040000000 0x0000000040000000 0x00007feb2fe00000  rw
                  pc.ram    4 KiB  0x0000000040000000 0x0000000001000000 0x0000000001000000 0x00007feb2e200000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000042140000 0x0000000000020000 0x0000000000200000 0x00007feb27c00000  ro
0000:00:04.0/virtio-net-pci.rom    4 KiB  0x0000000042100000 0x0000000000040000 0x0000000000040000 0x00007feb2c400000  ro
`;

describe('parseRamBlocks', () => {
  it('reads every column, in the order printed', () => {
    expect(parseRamBlocks(Q35)).toEqual([
      {
        name: '0000:00:03.0/vm0',
        usedLength: 2 ** 30,
        maxLength: 2 ** 30,
        address: 0x7feb2fe00000,
      },
      { name: 'pc.ram', usedLength: 2 ** 24, maxLength: 2 ** 24, address: 0x7feb2e200000 },
      {
        name: '/rom@etc/acpi/tables',
        usedLength: 0x20000,
        maxLength: 0x200000,
        address: 0x7feb27c00000,
      },
      {
        name: '0000:00:04.0/virtio-net-pci.rom',
        usedLength: 0x40000,
        maxLength: 0x40000,
        address: 0x7feb2c400000,
      },
    ]);
  });

  it('knows larger pages', () => {
    const line = (size: string) =>
      `                    ram0    ${size}  0x0000000000000000 0x0000000040000000 0x0000000040000000 0x00007f0000000000  rw\n`;
    for (const size of ['2 MiB', '1 GiB'])
      expect(parseRamBlocks(HEADER + line(size))).toMatchObject([{ name: 'ram0', usedLength: 2 ** 30 }]);
  });

  it('leaves out blocks without a name', () => {
    const nameless =
      '                            4 KiB  0x0000000043000000 0x0000000000001000 0x0000000000001000 0x00007feb27000000  rw\n';
    expect(parseRamBlocks(Q35 + nameless)).toHaveLength(4);
  });

  it('takes a name with blanks and one that looks like columns', () => {
    const line =
      ' my ram 4 KiB 0x00    4 KiB  0x0000000000000000 0x0000000000001000 0x0000000000001000 0x00007feb27000000  rw\n';
    expect(parseRamBlocks(HEADER + line)[0]?.name).toBe('my ram 4 KiB 0x00');
  });

  it('reads the table of a QEMU before 7.1, which has no last column', () => {
    expect(parseRamBlocks(Q35.replaceAll(/ {2}r[ow]$/gm, '')).map(({ name }) => name)).toEqual(
      parseRamBlocks(Q35).map(({ name }) => name),
    );
  });

  it.each(['garbage', 'pc.ram 4 KiB 0x0 0x0', 'pc.ram 4 KiB 0x0 0x1 0x1 0xffffffffffffffff rw'])(
    'refuses the line %j',
    (line) => {
      expect(() => parseRamBlocks(`${HEADER}${line}\n`)).toThrow(expect.objectContaining({ code: 'E_QMP' }));
    },
  );

  it('has nothing to say about an empty table', () => {
    expect(parseRamBlocks(HEADER)).toEqual([]);
  });
});
