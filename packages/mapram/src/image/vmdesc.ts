import { PAGE_BYTES, SUBSECTION_CAPABILITIES } from './format.ts';
import { encodeText } from './text.ts';

/**
 * The least description of a stream that keeps readers content: QEMU's loader warns when there is none, and its
 * `scripts/analyze-migration.py` walks the configuration section by it, so that it must name the subsections present.
 *
 * @returns JSON text in QEMU's own spelling, without devices.
 */
export function minimalVmdesc(machine: string, capabilities: readonly string[]): Uint8Array {
  const fields = [
    { name: 'len', type: 'uint32', size: 4 },
    { name: 'name', type: 'buffer', size: encodeText(machine).length },
  ];
  const configuration = {
    vmsd_name: 'configuration',
    version: 1,
    fields,
    ...(capabilities.length > 0 && { subsections: [capabilitiesSubsection(capabilities)] }),
  };
  return encodeText(JSON.stringify({ configuration, page_size: PAGE_BYTES, devices: [] }));
}

function capabilitiesSubsection(capabilities: readonly string[]): object {
  return {
    vmsd_name: SUBSECTION_CAPABILITIES,
    version: 1,
    fields: [
      { name: 'caps_count', type: 'uint32', size: 4 },
      ...capabilities.map((name) => ({
        name: 'capabilities',
        type: 'capability',
        size: 1 + encodeText(name).length,
      })),
    ],
  };
}
