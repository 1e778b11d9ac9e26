//! A model of the kernel drives the accounts with random requests and completions.

use super::*;
use crate::driver::{Token, slots::Slots};

/// What the model of the kernel holds: at most one of each for a token, or the accounts are wrong.
#[derive(Default)]
struct Kernel {
    inputs: Vec<Token>,
    outputs: Vec<Token>,
    /// Cancellations that report a miss later.
    missed: Vec<(Token, Step)>,
}

struct World {
    random: fastrand::Rng,
    kernel: Kernel,
    slots: Slots<Operations>,
    /// Tokens that the caller may still use.
    known: Vec<Token>,
    left: usize,
    closed: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            kernel: Kernel::default(),
            slots: Slots::new(),
            known: Vec::new(),
            left: 0,
            closed: 0,
        }
    }

    fn pick(&mut self) -> Option<Token> {
        (!self.known.is_empty()).then(|| self.known[self.random.usize(..self.known.len())])
    }

    fn settle(&mut self, token: Token) {
        while let Some(step) = self.slots.get_mut(token).and_then(Operations::poll_step) {
            let Kernel { inputs, outputs, missed } = &mut self.kernel;
            match step {
                Step::StartInput => {
                    assert!(!inputs.contains(&token), "two inputs in flight for {token:?}");
                    inputs.push(token);
                }
                Step::CancelInput => {
                    assert!(inputs.contains(&token), "cancels what is not there");
                    if self.random.bool() {
                        missed.push((token, step));
                    }
                }
                Step::CancelOutput => {
                    assert!(outputs.contains(&token), "cancels what is not there");
                    if self.random.bool() {
                        missed.push((token, step));
                    }
                }
                Step::Close | Step::Leave => {
                    assert!(!inputs.contains(&token), "{step:?} with an input in flight");
                    assert!(!outputs.contains(&token), "{step:?} with an output in flight");
                    self.slots.remove(token).expect("it was there");
                    if step == Step::Close {
                        self.closed += 1;
                    } else {
                        self.left += 1;
                        self.known.retain(|&other| other != token);
                    }
                }
            }
        }
        self.slots.check_invariants();
    }

    fn request(&mut self) {
        if self.known.len() < 8 && self.random.bool() {
            let token = self.slots.insert(Operations::new());
            self.known.push(token);
            return self.settle(token);
        }
        let Some(token) = self.pick() else { return };
        let choice = self.random.u8(..8);
        let operations = self.slots.get_mut(token).expect("a known token has a slot");
        match choice {
            0 => operations.set_paused(true),
            1 => operations.set_paused(false),
            2 | 3 if operations.can_start_output() => {
                operations.start_output();
                self.kernel.outputs.push(token);
            }
            4 => operations.set_starved(false),
            5 => operations.set_resting(false),
            6 => operations.leave(),
            7 => {
                operations.close();
                self.known.retain(|&other| other != token);
            }
            _ => {}
        }
        self.settle(token);
    }

    fn complete(&mut self) {
        let Kernel { inputs, outputs, missed } = &mut self.kernel;
        match self.random.u8(..3) {
            0 if !inputs.is_empty() => {
                let position = self.random.usize(..inputs.len());
                let token = inputs[position];
                let is_last = self.random.u8(..3) == 0;
                if is_last {
                    inputs.swap_remove(position);
                }
                let operations = self.slots.get_mut(token).expect("in flight keeps the slot");
                operations.handle_input(is_last);
                match self.random.u8(..8) {
                    0 if is_last => operations.set_starved(true),
                    1 if is_last => operations.set_resting(true),
                    2 if is_last => operations.set_ended(),
                    _ => {}
                }
                self.settle(token);
            }
            1 if !outputs.is_empty() => {
                let token = outputs.swap_remove(self.random.usize(..outputs.len()));
                self.slots.get_mut(token).expect("in flight keeps the slot").handle_output();
                self.settle(token);
            }
            2 if !missed.is_empty() => {
                let (token, step) = missed.swap_remove(self.random.usize(..missed.len()));
                // The report may come after the slot has a new occupant: then nobody is found.
                if let Some(operations) = self.slots.get_mut(token) {
                    match step {
                        Step::CancelInput => operations.handle_missed_input(),
                        _ => operations.handle_missed_output(),
                    }
                    self.settle(token);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn nothing_is_closed_or_handed_out_while_the_kernel_holds_it() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut world = World::new(seed);
    // Miri is some thousand times slower. Elsewhere the walk goes on until enough has happened to mean something.
    let (steps, steps_max) = if cfg!(miri) { (2_000, 2_000) } else { (50_000, 1_000_000) };
    for step in 0..steps_max {
        if step >= steps && world.left > 100 && world.closed > 100 {
            break;
        }
        if world.random.bool() {
            world.request();
        } else {
            world.complete();
        }
    }
    for token in std::mem::take(&mut world.known) {
        world.slots.get_mut(token).expect("known").close();
        world.settle(token);
    }
    // The kernel completes all that it holds, which may be thousands: then every slot must be vacated.
    for _ in 0..1_000_000 {
        world.complete();
        if world.kernel.inputs.is_empty() && world.kernel.outputs.is_empty() {
            break;
        }
    }
    assert!(world.kernel.inputs.is_empty() && world.kernel.outputs.is_empty());
    assert_eq!(world.slots.len(), 0, "every socket found its end");
    let is_long = world.left > 100 && world.closed > 100;
    assert!(cfg!(miri) || is_long, "{} left, {} closed", world.left, world.closed);
}

#[test]
fn a_pause_that_is_taken_back_starts_again_only_after_the_last_completion() {
    let mut operations = Operations::new();
    assert_eq!(operations.poll_step(), Some(Step::StartInput));
    operations.set_paused(true);
    assert_eq!(operations.poll_step(), Some(Step::CancelInput));
    operations.set_paused(false);
    assert_eq!(operations.poll_step(), None);
    operations.handle_input(false);
    assert_eq!(operations.poll_step(), None);
    operations.handle_input(true);
    assert_eq!(operations.poll_step(), Some(Step::StartInput));
    assert_eq!(operations.poll_step(), None);
}

#[test]
fn a_cancellation_that_missed_is_repeated_until_the_operation_ends() {
    let mut operations = Operations::new();
    assert_eq!(operations.poll_step(), Some(Step::StartInput));
    operations.start_output();
    operations.leave();
    assert_eq!(operations.poll_step(), Some(Step::CancelInput));
    assert_eq!(operations.poll_step(), Some(Step::CancelOutput));
    assert_eq!(operations.poll_step(), None);
    operations.handle_missed_input();
    operations.handle_missed_output();
    assert_eq!(operations.poll_step(), Some(Step::CancelInput));
    assert_eq!(operations.poll_step(), Some(Step::CancelOutput));
    operations.handle_input(true);
    assert_eq!(operations.poll_step(), None);
    operations.handle_output();
    assert_eq!(operations.poll_step(), Some(Step::Leave));
    operations.handle_missed_input();
    assert_eq!(operations.poll_step(), None);
    operations.close();
    assert_eq!(operations.poll_step(), Some(Step::Close));
}
