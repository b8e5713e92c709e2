/** What a test started and must end: run in reverse order, each step even if another one failed. */
export class Cleanup {
  readonly #steps: (() => void | Promise<void>)[] = [];

  /** Adds a step to be run before all that were added earlier. */
  add(step: () => void | Promise<void>): void {
    this.#steps.push(step);
  }

  /** Runs and forgets all steps; throws the first failure when all have run. */
  async run(): Promise<void> {
    const failures: unknown[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }
}
