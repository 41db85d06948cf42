//! When finished operations are reported: the script by which a test makes replies late or out of order.

use std::collections::VecDeque;

use crate::volume::VolumeReply;

/// How replies come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Delivery {
    /// At once, in the order of submission.
    #[default]
    InOrder,
    /// Only when released by tag.
    Held,
    /// Each is ready after this many further polls have found nothing.
    Delayed {
        /// Polls of `poll_reply` that answer `None` before the reply comes.
        polls: u32,
    },
    /// In an order drawn from the seed, the same on every run.
    Shuffled {
        /// Start of the sequence.
        seed: u64,
    },
}

#[derive(Debug)]
struct Waiting {
    tag: u64,
    reply: VolumeReply,
    polls_left: u32,
}

#[derive(Debug, Default)]
pub(super) struct Replies {
    delivery: Delivery,
    waiting: VecDeque<Waiting>,
    ready: VecDeque<(u64, VolumeReply)>,
    random: u64,
}

impl Replies {
    /// What is held stays held until released; later replies follow the new rule.
    pub(super) fn set_delivery(&mut self, delivery: Delivery) {
        self.delivery = delivery;
        if let Delivery::Shuffled { seed } = delivery {
            self.random = seed;
        }
    }

    pub(super) fn push(&mut self, tag: u64, reply: VolumeReply) {
        match self.delivery {
            Delivery::InOrder => self.ready.push_back((tag, reply)),
            Delivery::Delayed { polls } => self.waiting.push_back(Waiting { tag, reply, polls_left: polls }),
            Delivery::Held | Delivery::Shuffled { .. } => {
                self.waiting.push_back(Waiting { tag, reply, polls_left: 0 });
            }
        }
    }

    pub(super) fn held(&self) -> Vec<u64> {
        self.waiting.iter().map(|w| w.tag).collect()
    }

    pub(super) fn release(&mut self, tag: u64) -> bool {
        let found = self.waiting.iter().position(|w| w.tag == tag).and_then(|at| self.waiting.remove(at));
        found.is_some_and(|w| {
            self.ready.push_back((w.tag, w.reply));
            true
        })
    }

    pub(super) fn poll(&mut self) -> Option<(u64, VolumeReply)> {
        if let Some(reply) = self.ready.pop_front() {
            return Some(reply);
        }
        match self.delivery {
            Delivery::InOrder | Delivery::Held => None,
            Delivery::Delayed { .. } => self.poll_delayed(),
            Delivery::Shuffled { .. } => self.poll_shuffled(),
        }
    }

    fn poll_delayed(&mut self) -> Option<(u64, VolumeReply)> {
        if self.waiting.front()?.polls_left == 0 {
            return self.waiting.pop_front().map(|w| (w.tag, w.reply));
        }
        self.waiting.iter_mut().for_each(|w| w.polls_left = w.polls_left.saturating_sub(1));
        None
    }

    fn poll_shuffled(&mut self) -> Option<(u64, VolumeReply)> {
        let count = self.waiting.len() as u64;
        let at = self.next_random().checked_rem(count)?;
        self.waiting.remove(at as usize).map(|w| (w.tag, w.reply))
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
