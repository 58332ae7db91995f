//! Death in a test: at the step that it chooses, by a panic that nothing catches on the way.

use std::cell::Cell;

/// The payload of the panic by which a test ends the process.
pub(in crate::fs) struct SimulatedDeath;

thread_local! {
    static REMAINING_STEPS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Something has just been done for good; this thread may die of it.
pub(in crate::fs) fn step() {
    REMAINING_STEPS.with(|remaining| match remaining.get() {
        Some(0) => {
            remaining.set(None);
            // Not reported: the panic hook is for unexpected panics.
            std::panic::resume_unwind(Box::new(SimulatedDeath));
        }
        Some(steps) => remaining.set(Some(steps - 1)),
        None => {}
    });
}

/// Runs `work` until it ends or has made `steps` steps and dies; nothing then.
pub(in crate::fs) fn after<T>(steps: u32, work: impl FnOnce() -> T) -> Option<T> {
    REMAINING_STEPS.with(|remaining| remaining.set(Some(steps)));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    REMAINING_STEPS.with(|remaining| remaining.set(None));
    match outcome {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<SimulatedDeath>() => None,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
