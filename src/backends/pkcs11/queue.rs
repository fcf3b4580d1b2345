//! The bounded queue between callers and the threads of the pool: many in, many out, full is an answer.
//!
//! A mutex and a condition variable: the token takes 50 microseconds for its fastest signature, the lock is
//! held for nanoseconds, and a futex call is made only when a thread really sleeps.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
};

use super::module::lock;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    bound: usize,
}

struct State<T> {
    items: VecDeque<T>,
    idle: usize,
    closed: bool,
}

/// Why an item was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PushError {
    Full,
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::with_capacity(bound.min(1024)),
                idle: 0,
                closed: false,
            }),
            filled: Condvar::new(),
            bound,
        }
    }

    /// Never waits.
    pub(super) fn push(&self, item: T) -> Result<(), PushError> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(PushError::Closed);
        }
        if state.items.len() >= self.bound {
            return Err(PushError::Full);
        }
        state.items.push_back(item);
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits for an item; None after `close`.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(item) = state.items.pop_front() {
                return Some(item);
            }
            state.idle += 1;
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Drops what waits and lets every thread go.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.items.clear();
        drop(state);
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{PushError, Queue};

    #[test]
    fn full_and_closed_are_answers() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(queue.push(3), Err(PushError::Full));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.push(3), Ok(()));
        queue.close();
        assert_eq!(queue.push(4), Err(PushError::Closed));
        assert_eq!(queue.pop(), None);
    }
}
