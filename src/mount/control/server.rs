//! The daemon's end of the control socket. Listens to root and to the user it runs as, to a few at a time, to short lines
//! only, and not for long: nobody who may connect can harm the mount by it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tracing::{debug, warn};

use super::{
    Identity, REQUEST_MAX, Request, Response, ending, litter, make_runtime_directory, user,
};
use crate::ids::FileId;
use crate::mount::error::MountError;
use crate::volume::Volume;

/// Connections served at a time; one more is turned away.
const CONNECTIONS: usize = 32;

/// How long a connection may say nothing, and may take to read an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the end of the process waits for those who asked for it to hear.
const FAREWELL: Duration = Duration::from_secs(5);

/// How soon it is seen that who awaits the end is gone.
const STEP: Duration = Duration::from_millis(200);

/// A listening socket. Removed when dropped.
pub(crate) struct Server {
    path: PathBuf,
    /// Which file it is.
    socket: (u64, u64),
    shared: Arc<Shared>,
}

/// Answers every request but `AwaitEnd`.
type Answer = Box<dyn Fn(&Request) -> Response + Send + Sync>;

struct Shared {
    answer: Answer,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    connections: usize,
    awaiting: usize,
    /// Set at the end; with the last commit's error, if it failed.
    ended: Option<Option<String>>,
}

impl Server {
    /// Listens for the mount on `device`.
    pub(crate) fn start(
        volume: Arc<Volume>,
        identity: Identity,
        device: &str,
    ) -> Result<Server, MountError> {
        let directory = make_runtime_directory().map_err(|source| MountError::Io {
            what: "make the directory of control sockets".to_string(),
            source,
        })?;
        litter::remove(&directory);
        let path = directory.join(format!("{}{}", identity.volume, ending(device)));
        let answer = Box::new(move |request: &Request| answer(&volume, &identity, request));
        Self::listen(answer, &path).map_err(|source| MountError::Io {
            what: format!("listen at {}", path.display()),
            source,
        })
    }

    fn listen(answer: Answer, path: &Path) -> io::Result<Server> {
        // Devices are used by one mount at a time and this one is ours, so a socket there is a dead daemon's.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Nobody else can enter the directory in the moment before the mode is set.
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared {
            answer,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let server = Server {
            path: path.to_owned(),
            socket: identity_of(path)?,
            shared: shared.clone(),
        };
        thread::Builder::new()
            .name("control".to_string())
            .spawn(move || accept(&listener, &shared))?;
        Ok(server)
    }

    /// Tells those who wait for the end how it went, and lets them hear it.
    pub(crate) fn finish(self, error: Option<String>) {
        let mut state = self.shared.state.lock();
        state.ended = Some(error);
        self.shared.changed.notify_all();
        while state.awaiting > 0 {
            if self
                .shared
                .changed
                .wait_for(&mut state, FAREWELL)
                .timed_out()
            {
                return;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A mount that came after this one was gone may have the same name by now. Its socket is another file: this one's is
        // kept by the thread that listens.
        if !identity_of(&self.path).is_ok_and(|socket| socket == self.socket) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The device and the number of a socket's file.
fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                warn!("control socket: {error}");
                // Out of descriptors, most likely: it passes, and must not become a busy loop.
                thread::sleep(Duration::from_millis(200));
                continue;
            }
        };
        if let Err(error) = admit(&stream) {
            warn!("control socket: {error}");
            continue;
        }
        {
            let mut state = shared.state.lock();
            if state.connections >= CONNECTIONS {
                continue;
            }
            state.connections += 1;
        }
        let served = shared.clone();
        let spawned = thread::Builder::new()
            .name("control".to_string())
            .spawn(move || {
                if let Err(error) = served.serve(&stream) {
                    debug!("control socket: {error}");
                }
                served.state.lock().connections -= 1;
            });
        if let Err(error) = spawned {
            warn!("control socket: {error}");
            shared.state.lock().connections -= 1;
        }
    }
}

/// The mode of the socket says the same; this holds even if somebody changes it.
fn admit(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    let peer = peer.uid.as_raw();
    if peer != 0 && peer != user() {
        return Err(io::Error::other(format!("user {peer} was turned away")));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

impl Shared {
    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            reader
                .by_ref()
                .take(REQUEST_MAX)
                .read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                // Too long, or cut off: what follows is no beginning of a request.
                return send(
                    stream,
                    &Response::Error {
                        message: format!("a request is one line of less than {REQUEST_MAX} bytes"),
                    },
                );
            }
            match serde_json::from_slice(&line) {
                Ok(Request::AwaitEnd {}) => return self.await_end(stream),
                Ok(request) => send(stream, &(self.answer)(&request))?,
                Err(error) => send(
                    stream,
                    &Response::Error {
                        message: format!("not a request: {error}"),
                    },
                )?,
            }
        }
    }

    fn await_end(&self, stream: &UnixStream) -> io::Result<()> {
        self.state.lock().awaiting += 1;
        // Who asks must know that it will be told before it brings the end about.
        let told = send(stream, &Response::Awaited {})
            .and_then(|()| self.end(stream))
            .and_then(|error| send(stream, &Response::Ended { error }));
        self.state.lock().awaiting -= 1;
        self.changed.notify_all();
        // The connection stays open until the process ends, which tells the other side that it did.
        if told.is_ok() {
            thread::sleep(FAREWELL * 2);
        }
        told
    }

    /// Waits for the end; with the last commit's error, if it failed. An unmount that finds the mount in use goes away
    /// again: its connection is given up, or a few such would use up all there are.
    fn end(&self, stream: &UnixStream) -> io::Result<Option<String>> {
        let mut state = self.state.lock();
        let mut look = Instant::now() + STEP;
        loop {
            if let Some(error) = &state.ended {
                return Ok(error.clone());
            }
            // By the clock, whatever woke it: everybody who goes wakes all others.
            if Instant::now() >= look {
                if hung_up(stream)? {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                look = Instant::now() + STEP;
            }
            self.changed.wait_until(&mut state, look);
        }
    }
}

/// Whether the other side has nothing more to say. What it still says is passed over.
fn hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut said = [0; 1024];
    match recv(stream, &mut said[..], RecvFlags::DONTWAIT) {
        Ok((_, length)) => Ok(length == 0),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn answer(volume: &Volume, identity: &Identity, request: &Request) -> Response {
    if let Some(response) = super::tasks::answer(volume, request) {
        return response;
    }
    let answered = match request {
        Request::Pid {} => Ok(Response::Pid(identity.clone())),
        Request::Status {} => volume.status().map(Response::Status),
        Request::Inspect { file } => volume.inspect(FileId(*file)).map(Response::Inspection),
        Request::Commit {} => volume.commit_all().map(|()| Response::Committed {}),
        // The end is answered where connections are served: the answer is the last on one.
        _ => Ok(Response::Error {
            message: "that is answered elsewhere".to_string(),
        }),
    };
    answered.unwrap_or_else(|error| Response::Error {
        message: error.to_string(),
    })
}

fn send(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(directory: &Path) -> (Server, PathBuf) {
        let path = directory.join("test.sock");
        let answer = Box::new(|request: &Request| match request {
            Request::Commit {} => Response::Committed {},
            _ => Response::Error {
                message: "no".to_string(),
            },
        });
        (Server::listen(answer, &path).unwrap(), path)
    }

    /// Sends the bytes on a new connection; gives all that comes back.
    fn say(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        // The other side may hang up before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8(heard).unwrap()
    }

    #[test]
    fn the_socket_of_a_later_mount_of_the_same_name_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (first, path) = server(directory.path());
        let (later, same) = server(directory.path());
        assert_eq!(path, same);
        drop(first);
        assert!(path.exists());
        drop(later);
        assert!(!path.exists());
    }

    #[test]
    fn requests_are_answered_line_by_line() {
        let directory = tempfile::tempdir().unwrap();
        let (server, path) = server(directory.path());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            say(&path, b"{\"commit\":{}}\n{\"status\":{}}\n"),
            "{\"committed\":{}}\n{\"error\":{\"message\":\"no\"}}\n"
        );
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn hostile_lines_get_an_error_and_harm_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let (_server, path) = server(directory.path());
        assert!(say(&path, b"\0\xff\n").contains("not a request"));
        assert!(say(&path, "[".repeat(5000).as_bytes()).contains("one line"));
        assert!(say(&path, &vec![b'['; 15 << 10]).contains("one line"));
        assert!(
            say(&path, b"{\"commit\":{}}").contains("one line"),
            "cut off"
        );
        assert_eq!(say(&path, b""), "");
        // Longer than is read: whatever is heard of it, it is not served.
        assert!(!say(&path, &vec![b' '; 1 << 20]).contains("committed"));
        let idle: Vec<UnixStream> = (0..CONNECTIONS * 2)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        drop(idle);
        let committed = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            say(&path, b"{\"commit\":{}}\n").contains("committed")
        });
        assert!(committed);
    }

    #[test]
    fn who_awaits_the_end_and_goes_gives_its_connection_back() {
        let directory = tempfile::tempdir().unwrap();
        let (server, path) = server(directory.path());
        let awaited = || {
            let mut stream = UnixStream::connect(&path).unwrap();
            // One that is turned away finds its connection closed.
            let _ = stream.write_all(b"{\"await_end\":{}}\n");
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            line == "{\"awaited\":{}}\n"
        };
        let soon = |done: &dyn Fn() -> bool| {
            (0..200).any(|_| {
                let is_done = done();
                if !is_done {
                    thread::sleep(Duration::from_millis(20));
                }
                is_done
            })
        };
        for _ in 0..CONNECTIONS + 8 {
            assert!(soon(&awaited));
        }
        assert!(soon(
            &|| say(&path, b"{\"commit\":{}}\n").contains("committed")
        ));
        // Nobody who went is waited for.
        let all_went = || server.shared.state.lock().awaiting == 0;
        assert!(soon(&all_went));
    }

    #[test]
    fn the_end_is_told_to_who_awaits_it() {
        let directory = tempfile::tempdir().unwrap();
        let (server, path) = server(directory.path());
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{\"await_end\":{}}\n").unwrap();
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"awaited\":{}}\n");
        // Whoever has heard that is told, however soon the end comes.
        server.finish(Some("a disk is gone".to_string()));
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"ended\":{\"error\":\"a disk is gone\"}}\n");
    }
}
