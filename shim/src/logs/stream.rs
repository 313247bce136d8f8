//! One log in the writer process: a thread that reads a process's output and writes it to the file and to all who follow.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};

use super::file::LogFile;
use super::follower::Follower;
use super::lines::Lines;
use super::message::{self, Answer, Order};
use super::place::Place;
use super::time;

/// What is read at once: as much as a pipe holds.
const PIECE: usize = 64 << 10;
/// Buffers are given back when there was no output for this long.
const IDLE: Duration = Duration::from_secs(1);
/// How long those who follow may take to read the rest, once output has ended.
const FAREWELL: Duration = Duration::from_secs(10);

pub struct Stream {
    /// To the shim; none when it is gone.
    shim: Option<OwnedFd>,
    inputs: [Option<Input>; 2],
    file: LogFile,
    followers: Vec<Follower>,
    piece: Vec<u8>,
    records: Vec<u8>,
}

struct Input {
    pipe: OwnedFd,
    lines: Lines,
}

impl Stream {
    /// Opens the file, answers, and writes until the output has ended.
    pub fn run(place: &Place, shim: OwnedFd, pipes: [Option<OwnedFd>; 2]) {
        let file = match LogFile::open(&place.path) {
            Ok(file) => file,
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                for answer in [Answer::Done(Err(errno)), Answer::Ended] {
                    let _ = message::send(&shim, &answer.encode(), &[]); // a shim that is gone asks nothing
                }
                return;
            }
        };
        let [output, error] = pipes;
        let input =
            |name, pipe: Option<OwnedFd>| pipe.map(|pipe| Input { pipe, lines: Lines::new(name, place.max_line) });
        let inputs = [input("stdout", output), input("stderr", error)];
        let shim = Some(shim);
        let mut stream = Stream { shim, inputs, file, followers: Vec::new(), piece: Vec::new(), records: Vec::new() };
        stream.answer(&Answer::Done(Ok(())));
        while stream.inputs.iter().any(Option::is_some) {
            stream.turn(None);
        }
        stream.answer(&Answer::Ended);
        stream.shim = None;
        let end = Instant::now() + FAREWELL;
        loop {
            stream.followers.retain(Follower::is_behind); // the others read the end now
            if stream.followers.is_empty() || Instant::now() >= end {
                return;
            }
            stream.turn(Some(end));
        }
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self, until: Option<Instant>) {
        let [shim, output, error, followers @ ..] = &*self.ready(until) else { return };
        let (shim, inputs, followers) = (*shim, [*output, *error], followers.to_vec());
        let mut ready = followers.iter();
        self.followers.retain_mut(|follower| match ready.next() {
            Some(flags) if flags.intersects(PollFlags::ERR) => false,
            Some(flags) if flags.intersects(PollFlags::OUT) => follower.flush().is_ok(),
            _ => true,
        });
        for (index, flags) in inputs.into_iter().enumerate() {
            if !flags.is_empty() {
                self.take(index);
            }
        }
        // Last, so that what was written before a file was renamed goes to where it was.
        if !shim.is_empty() {
            self.obey();
        }
    }

    /// What each descriptor is ready for: the shim's socket, the two outputs, and those who follow.
    fn ready(&mut self, until: Option<Instant>) -> Vec<PollFlags> {
        let mut fds = Vec::new();
        let mut places = Vec::new();
        let inputs = self.inputs.iter().map(|input| input.as_ref().map(|input| &input.pipe));
        for fd in std::iter::once(self.shim.as_ref()).chain(inputs) {
            places.push(fd.is_some());
            fds.extend(fd.map(|fd| PollFd::new(fd, PollFlags::IN)));
        }
        for follower in &self.followers {
            places.push(true);
            let flags = if follower.is_behind() { PollFlags::OUT } else { PollFlags::empty() };
            fds.push(PollFd::new(&follower.fifo, flags)); // that nobody reads any more is always told
        }
        let idle = self.piece.capacity() > 0;
        let limit = match until {
            Some(end) => Some(end.saturating_duration_since(Instant::now())),
            None => idle.then_some(IDLE),
        };
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let count = poll(&mut fds, limit.as_ref()).unwrap_or(0);
        let mut found = fds.iter().map(PollFd::revents);
        let flags = places
            .into_iter()
            .map(|there| if there { found.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() })
            .collect();
        if count == 0 && until.is_none() {
            (self.piece, self.records) = (Vec::new(), Vec::new());
        }
        flags
    }

    /// Reads a piece of output and passes it on. Those who follow get it first: the file may hang.
    fn take(&mut self, index: usize) {
        let Some(input) = &mut self.inputs[index] else { return };
        self.piece.resize(PIECE, 0);
        let time = time::now();
        self.records.clear();
        match read(&input.pipe, self.piece.as_mut_slice()) {
            Ok(length @ 1..) => {
                let bytes = &self.piece[..length];
                self.followers.retain_mut(|follower| follower.of != index || follower.push(bytes).is_ok());
                input.lines.push(bytes, &time, &mut self.records);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) | Err(_) => {
                input.lines.finish(&time, &mut self.records);
                self.inputs[index] = None;
            }
        }
        self.file.append(&self.records);
    }

    fn obey(&mut self) {
        let Some(shim) = &self.shim else { return };
        let result = match message::receive(shim) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(None) | Err(_) => {
                self.shim = None;
                return;
            }
            Ok(Some((bytes, fds))) => match Order::decode(&bytes) {
                Some(Order::Reopen) => {
                    self.file.reopen().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
                }
                Some(Order::Follow { output, error }) => {
                    let of = [output.then_some(0), error.then_some(1)];
                    self.followers.extend(of.into_iter().flatten().zip(fds).map(|(of, fifo)| Follower::new(of, fifo)));
                    Ok(())
                }
                Some(Order::Open { .. }) | None => Err(Errno::INVAL),
            },
        };
        self.answer(&Answer::Done(result));
    }

    fn answer(&mut self, answer: &Answer) {
        if let Some(shim) = &self.shim
            && message::send(shim, &answer.encode(), &[]).is_err()
        {
            self.shim = None;
        }
    }
}
