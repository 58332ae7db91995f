//! Death in a test: at the step that it chooses, by a panic that nothing catches on the way.

use std::cell::Cell;

/// What the panic says.
pub(in crate::fs) struct Died;

thread_local! {
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Something has just been done for good; this thread may die of it.
pub(in crate::fs) fn step() {
    STEPS_LEFT.with(|left| match left.get() {
        Some(0) => {
            left.set(None);
            // Not reported: the panic hook is for unexpected panics.
            std::panic::resume_unwind(Box::new(Died));
        }
        Some(steps) => left.set(Some(steps - 1)),
        None => {}
    });
}

/// Runs `work` until it ends or has made `steps` steps and dies; nothing then.
pub(in crate::fs) fn after<T>(steps: u32, work: impl FnOnce() -> T) -> Option<T> {
    STEPS_LEFT.with(|left| left.set(Some(steps)));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    STEPS_LEFT.with(|left| left.set(None));
    match outcome {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<Died>() => None,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
