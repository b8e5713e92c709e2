//! What a handle of JavaScript's holds while it is open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Filled once what it holds is there, by a thread; emptied, and so closed, when it is given up rather than whenever
/// JavaScript collects the handle.
pub(crate) struct Slot<T>(Arc<Mutex<Option<Arc<T>>>>);

impl<T> Slot<T> {
    pub fn put(&self, value: T) {
        *self.lock() = Some(Arc::new(value));
    }

    /// `None` before it is filled and once it was emptied.
    pub fn get(&self) -> Option<Arc<T>> {
        self.lock().clone()
    }

    pub fn take(&self) -> Option<Arc<T>> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}
