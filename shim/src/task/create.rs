//! `Create`: from a bundle to a container that waits for `Start`.

use std::ffi::OsStr;
use std::path::Path;
use std::rc::Rc;

use tare_proto::containerd::events::{TaskCreate, TaskIo};
use tare_proto::containerd::task::v3::{CreateTaskRequest, CreateTaskResponse};
use tare_proto::ttrpc::{Code, Error};

use super::process::Process;
use super::{Container, Supervisor, failed, invalid};
use crate::args::is_name;
use crate::bundle::Config;
use crate::log;
use crate::options::Options;
use crate::rootfs::Rootfs;
use crate::runtime::{self, Runtime, Streams};
use crate::stdio::{Asked, ConsoleSocket, Owner, Stdio};

impl Supervisor {
    pub(super) async fn create(self: &Rc<Self>, request: CreateTaskRequest) -> Result<CreateTaskResponse, Error> {
        check(&request)?;
        let _reserved = self.reserve(&request.id)?;
        let options =
            request.options.as_ref().map_or_else(|| Ok(Options::default()), Options::from_any).map_err(invalid)?;
        let bundle = Path::new(&request.bundle);
        let config = Config::read(bundle).map_err(invalid)?;
        let runtime = Runtime::new(&options, &self.namespace, bundle, self.debug);
        options.write(bundle)?;
        runtime.write_name()?;
        self.join_pod(&request.id, bundle)?;
        let rootfs = Rootfs::mount(&request.rootfs, bundle).map_err(failed)?;
        let asked = Asked {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let container = if request.checkpoint.is_empty() {
            self.start_runtime(&request, asked, &options, config, runtime).await?
        } else {
            self.to_be_restored(&request, asked, &options, &config, runtime)
        };
        rootfs.keep();
        let pid = container.init.pid();
        self.tell_created(request, pid);
        self.containers.borrow_mut().insert(container.id.clone(), container.clone());
        self.watch(container.clone(), container.init.clone());
        Ok(CreateTaskResponse { pid })
    }

    /// Runs the runtime's `create`; if anything fails after it, what it has made is deleted again.
    async fn start_runtime(
        self: &Rc<Self>,
        request: &CreateTaskRequest,
        asked: Asked,
        options: &Options,
        config: Config,
        runtime: Runtime,
    ) -> Result<Rc<Container>, Error> {
        let owner = self.owner(&request.id, (options.io_uid, options.io_gid));
        let console = if asked.terminal { Some(ConsoleSocket::listen(&self.sockets, self.number())?) } else { None };
        let (mut stdio, streams) = match &console {
            Some(_) => (Stdio::default(), Streams::null()),
            None => Stdio::open(&asked, &owner).await.map_err(failed)?,
        };
        let pid_file = Path::new(&request.bundle).join("init.pid");
        let mut words = vec![OsStr::new("create"), "--bundle".as_ref(), request.bundle.as_ref()];
        words.extend([OsStr::new("--pid-file"), pid_file.as_ref()]);
        if let Some(console) = &console {
            words.extend([OsStr::new("--console-socket"), console.path.as_ref()]);
        }
        words.extend(options.no_pivot_root.then_some(OsStr::new("--no-pivot")));
        words.extend(options.no_new_keyring.then_some(OsStr::new("--no-new-keyring")));
        words.push(request.id.as_ref());
        let _hold = self.children.hold();
        let created = runtime.run(&self.children, &words, streams).await;
        if let Err(error) = created {
            stdio.finish().await;
            return Err(failed(format!("OCI runtime create failed: {error}")));
        }
        let made = async {
            let child = runtime::read_pid_file(&self.children, &pid_file)?;
            if let Some(console) = console {
                stdio = Stdio::attach(&asked, &owner, console.receive().await?).await.map_err(failed)?;
            }
            Ok::<_, Error>(child)
        };
        let child = match made.await {
            Ok(child) => child,
            Err(error) => {
                let words = [OsStr::new("delete"), "--force".as_ref(), request.id.as_ref()];
                if let Err(error) = runtime.run(&self.children, &words, Streams::null()).await {
                    log::warn(&format!("undoing the creation of {}: {error}", request.id));
                }
                return Err(error);
            }
        };
        let init = Process::new(String::new(), asked, Vec::new());
        init.set_stdio(stdio);
        let bundle = request.bundle.clone().into();
        let container = Container::new(&request.id, bundle, runtime, options, &config, init, None);
        container.adopt(child);
        Ok(container)
    }

    pub(super) fn owner<'a>(&'a self, id: &'a str, (uid, gid): (u32, u32)) -> Owner<'a> {
        Owner {
            namespace: &self.namespace,
            id,
            children: &self.children,
            logs: &self.logs,
            uid,
            gid,
            leaves_children: false,
        }
    }

    fn tell_created(&self, request: CreateTaskRequest, pid: u32) {
        let io =
            TaskIo { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let event = TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io),
            checkpoint: request.checkpoint,
            pid,
        };
        self.events.tell("/tasks/create", "TaskCreate", &event);
    }

    /// Takes an id, so that a second `Create` of it is refused from here on.
    pub(crate) fn reserve(self: &Rc<Self>, id: &str) -> Result<Reserved, Error> {
        if self.containers.borrow().contains_key(id) || !self.reserved.borrow_mut().insert(id.to_owned()) {
            return Err(Error::new(Code::AlreadyExists, format!("container {id}: already exists")));
        }
        Ok(Reserved(self.clone(), id.to_owned()))
    }
}

pub(crate) struct Reserved(Rc<Supervisor>, String);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.reserved.borrow_mut().remove(&self.1);
    }
}

fn check(request: &CreateTaskRequest) -> Result<(), Error> {
    if !is_name(&request.id) {
        return Err(invalid(format!("id {:?}: an id is 1 to 200 letters, digits and _+-.", request.id)));
    }
    if !Path::new(&request.bundle).is_absolute() {
        return Err(invalid(format!("bundle {:?}: the path is not absolute", request.bundle)));
    }
    if !request.checkpoint.is_empty() && !Path::new(&request.checkpoint).is_dir() {
        return Err(invalid(format!("checkpoint {:?}: there is no such folder", request.checkpoint)));
    }
    Ok(())
}
