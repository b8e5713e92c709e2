// Runs QMP commands one after the other: node qmp.js SOCKET COMMAND..., each command as JSON. After `migrate` it waits until the
// migration has ended. This is the script that whole commands of mapram are compared with, so it imports nothing but Node.
import { connect } from 'node:net';
import { createInterface } from 'node:readline';

const [path, ...commands] = process.argv.slice(2);
const socket = connect(path);
const lines = createInterface({ input: socket })[Symbol.asyncIterator]();

async function nextMessage() {
  const { value, done } = await lines.next();
  if (done) throw new Error('QEMU closed the connection');
  return JSON.parse(value);
}

async function execute(command) {
  socket.write(`${command}\n`);
  for (;;) {
    const message = await nextMessage();
    if (message.error) throw new Error(`${command}: ${message.error.desc}`);
    if ('return' in message) return;
  }
}

async function migrationEnd() {
  for (;;) {
    const { event, data } = await nextMessage();
    if (event === 'MIGRATION' && data.status === 'completed') return;
    if (event === 'MIGRATION' && data.status === 'failed') throw new Error('the migration failed');
  }
}

await nextMessage();
await execute('{"execute":"qmp_capabilities"}');
for (const command of commands) {
  await execute(command);
  if (JSON.parse(command).execute === 'migrate') await migrationEnd();
}
socket.destroy();
