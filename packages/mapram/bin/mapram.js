#!/usr/bin/env node
// The modules of dist/cli in a few files: Node takes less time to load these.
import { main } from '../dist/bundle/main.js';

await main(process.argv.slice(2));
