#!/usr/bin/env node
// The modules of dist/cli in a few files: Node loads these with half the processor time.
import { main } from '../dist/bundle/main.js';

await main(process.argv.slice(2));
