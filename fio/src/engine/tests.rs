use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::target::Reply;

/// A target in memory that answers everything in the turn after the one that sent it.
#[derive(Default)]
struct Inside {
    bytes: Vec<u8>,
    submitted: Vec<(u64, ImageOp)>,
    sent: VecDeque<Reply>,
    replies: VecDeque<Reply>,
    turns: usize,
    status: Option<Status>,
    is_silent: bool,
    is_closed: bool,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<Inside>>);

impl Inside {
    fn carry_out(&mut self, op: ImageOp) -> Result<ImageReply, Status> {
        if let Some(status) = self.status {
            return Err(status);
        }
        match op {
            ImageOp::Read { offset, len } => {
                let found = &self.bytes[offset as usize..(offset + len) as usize];
                let (a, b) = found.split_at(found.len() / 3);
                Ok(ImageReply::Data(vec![Buffer::copy_of(a), Buffer::copy_of(b)]))
            }
            ImageOp::Write { offset, data } => {
                self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                Ok(ImageReply::Done)
            }
            ImageOp::Discard { offset, len } => {
                self.bytes[offset as usize..(offset + len) as usize].fill(0);
                Ok(ImageReply::Done)
            }
            _ => Ok(ImageReply::Done),
        }
    }
}

impl Target for Fake {
    fn size(&self) -> u64 {
        self.0.borrow().bytes.len() as u64
    }

    fn unit(&self) -> u64 {
        512
    }

    fn submit(&mut self, tag: u64, op: ImageOp) {
        self.0.borrow_mut().submitted.push((tag, op));
    }

    fn poll_reply(&mut self) -> Option<Reply> {
        self.0.borrow_mut().replies.pop_front()
    }

    fn turn(&mut self, until: Instant) -> Result<(), Error> {
        let mut inside = self.0.borrow_mut();
        inside.turns += 1;
        if inside.is_silent {
            drop(inside);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            return Ok(());
        }
        let answered: Vec<_> = inside.sent.drain(..).collect();
        inside.replies.extend(answered);
        for (tag, op) in std::mem::take(&mut inside.submitted) {
            let reply = inside.carry_out(op);
            inside.sent.push_back((tag, reply));
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        self.0.borrow_mut().is_closed = true;
        Err(Error::new("left something"))
    }
}

/// Memory that the test can look at.
#[derive(Clone)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Shared {
    fn new(bytes: &[u8]) -> Self {
        Self(Rc::new(RefCell::new(bytes.to_vec())))
    }
}

impl Memory for Shared {
    fn take(&self) -> Buffer {
        Buffer::copy_of(&self.0.borrow())
    }

    fn fill(&mut self, pieces: &[Buffer]) -> bool {
        let all = pieces.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<u8>>();
        let fits = all.len() == self.0.borrow().len();
        if fits {
            *self.0.borrow_mut() = all;
        }
        fits
    }
}

const SIZE: usize = 8 << 20;

fn engine(depth: usize) -> (Engine<u32, Shared>, Fake) {
    let fake = Fake::default();
    fake.0.borrow_mut().bytes = vec![0; SIZE];
    (Engine::new(Box::new(fake.clone()), depth), fake)
}

fn events(engine: &Engine<u32, Shared>, count: usize) -> Vec<(u32, i32)> {
    assert!(engine.event(count).is_none());
    (0..count).filter_map(|index| engine.event(index)).map(|ended| (ended.unit, ended.error)).collect()
}

#[test]
fn what_is_written_is_read_and_trimmed() {
    let (mut engine, _) = engine(4);
    let data: Vec<u8> = (0..1024).map(|i| i as u8).collect();
    engine.queue(1, Kind::Write, (512, 1024), Shared::new(&data)).unwrap();
    assert_eq!(engine.wait(1, 4, None), Ok(1));
    assert_eq!(events(&engine, 1), [(1, 0)]);
    let found = Shared::new(&[9; 2048]);
    engine.queue(2, Kind::Read, (0, 2048), found.clone()).unwrap();
    engine.wait(1, 4, None).unwrap();
    assert_eq!(events(&engine, 1), [(2, 0)]);
    assert_eq!(&found.0.borrow()[512..1536], &data[..]);
    engine.queue(3, Kind::Trim, (512, 512), Shared::new(&[])).unwrap();
    engine.queue(4, Kind::Sync, (1, 1), Shared::new(&[])).unwrap();
    assert_eq!(engine.wait(2, 4, None), Ok(2));
    assert_eq!(events(&engine, 2), [(3, 0), (4, 0)]);
    engine.queue(5, Kind::Read, (0, 2048), found.clone()).unwrap();
    engine.wait(1, 1, None).unwrap();
    assert_eq!(&found.0.borrow()[512..1024], &[0; 512]);
    assert_eq!(&found.0.borrow()[1024..1536], &data[512..]);
}

#[test]
fn nothing_is_sent_before_fio_waits_unless_it_is_much() {
    let (mut engine, fake) = engine(256);
    let page = Shared::new(&[1; 4096]);
    for unit in 0..63 {
        engine.queue(unit, Kind::Write, (u64::from(unit) * 4096, 4096), page.clone()).unwrap();
    }
    assert_eq!((fake.0.borrow().turns, fake.0.borrow().submitted.len()), (0, 63));
    engine.queue(63, Kind::Write, (0, 4096), page).unwrap();
    assert_eq!((fake.0.borrow().turns, fake.0.borrow().submitted.len()), (1, 0));
    assert_eq!(engine.wait(64, 256, None), Ok(64));
}

#[test]
fn no_more_than_agreed_are_under_way_and_no_more_than_asked_for_are_reported() {
    let (mut engine, _) = engine(3);
    let memory = Shared::new(&[0; 512]);
    for unit in 0..3 {
        engine.queue(unit, Kind::Read, (0, 512), memory.clone()).unwrap();
    }
    assert_eq!(engine.queue(3, Kind::Read, (0, 512), memory.clone()), Err(Refused::Full));
    assert_eq!(engine.wait(1, 2, None), Ok(2));
    assert_eq!(events(&engine, 2), [(0, 0), (1, 0)]);
    assert_eq!(engine.wait(1, 2, None), Ok(1), "the third is there already");
    assert_eq!(events(&engine, 1), [(2, 0)]);
    assert_eq!(engine.queue(3, Kind::Read, (0, 512), memory), Ok(()));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (mut engine, fake) = engine(4);
    let memory = Shared::new(&[0; 512]);
    let size = SIZE as u64;
    let refused = Err(Refused::Error(errno::INVALID));
    for range in [(1, 512), (0, 511), (0, 0), (size, 512), (size - 512, 1024), (u64::MAX - 511, 512), (0, u64::MAX)] {
        for kind in [Kind::Read, Kind::Write, Kind::Trim] {
            assert_eq!(engine.queue(1, kind, range, memory.clone()), refused, "{kind:?} {range:?}");
        }
    }
    fake.0.borrow_mut().bytes = vec![0; 65 << 20];
    assert_eq!(engine.queue(1, Kind::Read, (0, 65 << 20), memory.clone()), refused);
    assert_eq!(engine.queue(1, Kind::Trim, (0, 65 << 20), memory), Ok(()), "a trim moves no data");
}

#[test]
fn failures_become_error_numbers() {
    let (mut engine, fake) = engine(4);
    for (status, error) in
        [(Status::NoSpace, 28), (Status::Corrupt, 74), (Status::ReadOnly, 30), (Status::NotFound, 2), (Status::Io, 5)]
    {
        fake.0.borrow_mut().status = Some(status);
        engine.queue(1, Kind::Sync, (0, 0), Shared::new(&[])).unwrap();
        engine.wait(1, 1, None).unwrap();
        assert_eq!(events(&engine, 1), [(1, error)]);
    }
    fake.0.borrow_mut().status = None;
    engine.queue(2, Kind::Read, (0, 1024), Shared::new(&[0; 512])).unwrap();
    engine.wait(1, 1, None).unwrap();
    assert_eq!(events(&engine, 1), [(2, errno::IO)], "an answer that does not fit");
}

#[test]
fn waiting_ends_with_the_time() {
    let (mut engine, fake) = engine(4);
    fake.0.borrow_mut().is_silent = true;
    engine.queue(1, Kind::Sync, (0, 0), Shared::new(&[])).unwrap();
    assert_eq!(engine.wait(1, 4, Some(Duration::from_millis(20))), Ok(0));
    assert_eq!(engine.wait(0, 4, None), Ok(0), "a glance");
    fake.0.borrow_mut().is_silent = false;
    assert_eq!(engine.wait(1, 4, Some(Duration::from_secs(10))), Ok(1));
    let error = engine.close().unwrap_err();
    assert_eq!((error.to_string().as_str(), fake.0.borrow().is_closed), ("left something", true));
}
