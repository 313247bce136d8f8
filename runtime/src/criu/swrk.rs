//! CRIU as a child of ours that answers one request over a socket, `criu swrk FD`, and asks us in between.
//!
//! Source: <https://criu.org/RPC>; CRIU's criu/cr-service.c.

use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    send, shutdown, socketpair,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::Error;
use super::message::{Kind, Notify, Request, Response, Version};
use crate::child::Init;
use crate::child::helper::Program;
use crate::error::{Doing as _, Failed};
use crate::sys::{self, CStrArray};

/// Does what is to be done at a point that CRIU has come to, named by its script; a descriptor may come with it.
pub type OnNotify<'a> = &'a mut dyn FnMut(&str, &Notify, Option<OwnedFd>) -> Result<(), Error>;

/// A CRIU that waits for its request.
pub struct Criu {
    process: Init,
    socket: OwnedFd,
}

impl Criu {
    /// Starts the one that PATH has; `stdio` is its standard input, output and error, if they are not to be ours.
    ///
    /// # Errors
    /// There is none, or it cannot be started.
    pub fn start(stdio: Option<OwnedFd>) -> Result<Criu, Error> {
        let path = find()?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .doing(|| "making a socket pair for criu".into())?;
        sys::keep_over_exec(theirs.as_raw_fd()).doing(|| "handing criu its socket".into())?;
        let string =
            |text: String| CString::new(text).expect("a program's name, a word and a number have no zero byte");
        let variable = |name: &[u8], value: &[u8]| CString::new([name, b"=", value].concat());
        let environment =
            std::env::vars_os().filter_map(|(name, value)| variable(name.as_bytes(), value.as_bytes()).ok()).collect();
        let program = Program {
            path: CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::NotFound)?,
            argv: CStrArray::new(["criu".into(), "swrk".into(), theirs.as_raw_fd().to_string()].map(string).to_vec()),
            environment: CStrArray::new(environment),
            stdio,
        };
        Ok(Criu { process: program.start()?, socket: ours })
    }

    pub fn pid(&self) -> i32 {
        self.process.pid.as_raw_nonzero().get()
    }

    /// Sends the request and answers what it asks, until it says how it went.
    ///
    /// # Errors
    /// It failed, or what was asked of us did.
    pub fn ask(self, request: &Request, on: OnNotify<'_>) -> Result<Response, Error> {
        self.say(request)?;
        let mut ours = None;
        loop {
            let (response, fd) = self.hear()?;
            if !response.success {
                let refused = Error::Refused { kind: response.kind(), errno: response.errno.unwrap_or_default() };
                let _ = self.end(); // with an error, as it has just said
                return Err(ours.unwrap_or(refused));
            }
            let Some(notify) = response.notify.as_ref().filter(|_| response.kind() == Kind::Notify) else {
                let ended = self.end();
                // After a pre-dump it waits for a dump, which another one will be asked for: being hung up on is its error.
                return if response.kind() == Kind::PreDump { Ok(response) } else { ended.map(|()| response) };
            };
            if ours.is_none() {
                ours = on(notify.script(), notify, fd).err(); // then CRIU undoes what it has done so far
            }
            let success = ours.is_none();
            self.say(&Request { kind: Kind::Notify.into(), notify_success: Some(success), ..Request::default() })?;
        }
    }

    fn say(&self, request: &Request) -> Result<(), Failed> {
        let bytes = request.encode_to_vec();
        send(&self.socket, &bytes, SendFlags::NOSIGNAL).map(drop).doing(|| "asking criu".into())
    }

    fn hear(&self) -> Result<(Response, Option<OwnedFd>), Error> {
        const LONGEST: usize = 64 * 1024;
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let heard = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = match heard {
            Ok(message) => message.bytes,
            Err(errno) => return Err(errno).doing(|| "listening to criu".into())?,
        };
        if length == 0 {
            return Err(Error::Gone);
        }
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let fd = fds.last();
        let response = Response::decode(&bytes[..length]).map_err(|error| Error::Nonsense(error.to_string()))?;
        Ok((response, fd))
    }

    /// Waits until it is gone: until then it may have the images open, or processes stopped.
    fn end(mut self) -> Result<(), Error> {
        shutdown(&self.socket, rustix::net::Shutdown::Both).doing(|| "hanging up on criu".into())?;
        let ended = waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED)
            .doing(|| "waiting for criu".into())?;
        self.process.keep(); // it has been waited for
        match ended.and_then(|ended| ended.exit_status()) {
            Some(0) => Ok(()),
            Some(status) => Err(Error::Ended(format!("exit status {status}"))),
            None => Err(Error::Ended("killed".into())),
        }
    }
}

/// Asks which version it is.
///
/// # Errors
/// There is none, or it does not say.
pub fn version() -> Result<Version, Error> {
    let request = Request { kind: Kind::Version.into(), ..Request::default() };
    let response = Criu::start(Some(null()?))?.ask(&request, &mut |_, _, _| Ok(()))?;
    response.version.ok_or_else(|| Error::Nonsense("it has no version".into()))
}

pub fn null() -> Result<OwnedFd, Failed> {
    let open = std::fs::File::options().read(true).write(true).open("/dev/null");
    open.map(OwnedFd::from).doing(|| "opening /dev/null".into())
}

fn find() -> Result<PathBuf, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let program = |folder: &Path| {
        let path = folder.join("criu");
        let runs = path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        runs.then_some(path)
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .find_map(|folder| program(&folder))
        .ok_or(Error::NotFound)
}
