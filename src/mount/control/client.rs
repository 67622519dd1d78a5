//! A command's end of the control socket: finds the daemon of a mount or of a config, asks, and hears the answer.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Identity, Request, Response, ending, runtime_directory, user};
use crate::mount::mountinfo::{self, Mount};

/// The longest answer that is read.
const RESPONSE_MAX: u64 = 64 << 20;

/// How long an answer may take that waits for nothing but a disk or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a daemon may take to say who it is, for which it needs no disk.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// A daemon that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no socket for it.
    #[error(
        "no parsfs daemon answers for {what}; if it was mounted by another user, ask as that user or as root"
    )]
    NoDaemon {
        /// The mount or volume.
        what: String,
    },
    /// It took too long.
    #[error(
        "no answer in {} s from the parsfs daemon at {}: a disk may hang; the log of its daemon tells",
        waited.as_secs(), socket.display()
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection broke.
    #[error("the parsfs daemon at {} does not answer: {source}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// How it broke.
        #[source]
        source: io::Error,
    },
    /// It said that it cannot.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// The daemon of a mount.
    pub fn of_mount(mount: &Mount) -> Result<Client, ControlError> {
        let name = mount.mountpoint.display().to_string();
        Self::of_device(&mount.device, mount.user, &name)
    }

    /// The daemon of the mount on a device (`major:minor`), which `owner` may have mounted.
    pub fn of_device(device: &str, owner: Option<u32>, what: &str) -> Result<Client, ControlError> {
        let ending = ending(device);
        sockets(owner)
            .into_iter()
            .filter(|socket| socket.to_string_lossy().ends_with(&ending))
            .filter_map(|socket| Self::connect(&socket).ok())
            .find_map(|client| client.if_it_serves(device))
            .ok_or_else(|| ControlError::NoDaemon {
                what: what.to_string(),
            })
    }

    /// Itself, if its daemon's mount is the one on this device. The kernel gives a device's number to the next mount at once,
    /// while a daemon that lost its own may go on closing its volume for long: it must not be told what is meant for another.
    /// That may even be mounted at the same place: so the volume's name has to be the mount's too.
    fn if_it_serves(mut self, device: &str) -> Option<Client> {
        self.send(&Request::Pid {}).ok()?;
        let Ok(Response::Pid(identity)) = self.receive(Some(INTRODUCTION)) else {
            return None;
        };
        let mount = mountinfo::at(&identity.mountpoint).ok()??;
        (mount.device == device && mount.source == identity.name).then_some(self)
    }

    /// The daemon that serves the volume on any of these disks; the one that writes, if there are several.
    pub fn of_disks(disks: &[PathBuf]) -> Option<(Client, Identity)> {
        let mut found: Option<(Client, Identity)> = None;
        for socket in sockets(None) {
            let Ok(mut client) = Self::connect(&socket) else {
                continue;
            };
            // One that hangs, of whatever volume, must not hold up the others.
            let answer = client
                .send(&Request::Pid {})
                .and_then(|()| client.receive(Some(INTRODUCTION)));
            let Ok(Response::Pid(identity)) = answer else {
                continue;
            };
            let serves = identity.disks.iter().any(|disk| disks.contains(disk));
            let better = found.as_ref().is_none_or(|(_, other)| other.read_only);
            if serves && better {
                found = Some((client, identity));
            }
        }
        found
    }

    fn connect(socket: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client {
            socket: socket.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// Asks, and waits for the answer. What the daemon refuses is an error.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ControlError> {
        self.send(request)?;
        self.receive(Some(PATIENCE))
    }

    /// Asks for what may take as long as copying all metadata takes.
    pub fn ask_patiently(&mut self, request: &Request) -> Result<Response, ControlError> {
        self.send(request)?;
        self.receive(None)
    }

    /// Sends a request whose answer is to be received later.
    pub fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        let result = serde_json::to_vec(request)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.stream.get_mut().write_all(&line)
            });
        result.map_err(|source| self.broken(source, Some(PATIENCE)))
    }

    /// Receives the next answer.
    pub fn receive(&mut self, patience: Option<Duration>) -> Result<Response, ControlError> {
        match self.receive_line(patience) {
            Ok(Response::Error { message }) => Err(ControlError::Refused(message)),
            Ok(response) => Ok(response),
            Err(source) => Err(self.broken(source, patience)),
        }
    }

    fn receive_line(&mut self, patience: Option<Duration>) -> io::Result<Response> {
        self.stream.get_ref().set_read_timeout(patience)?;
        let mut line = Vec::new();
        self.stream
            .by_ref()
            .take(RESPONSE_MAX)
            .read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(serde_json::from_slice(&line)?)
    }

    /// Waits until the other side is gone.
    pub fn await_close(&mut self) {
        // Whatever ends the connection, it has ended.
        let _ = self.stream.get_ref().set_read_timeout(None);
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }

    /// Why nothing came of it, if it was waited for so long at most. What the system says of a time that is over tells
    /// nobody that it is.
    fn broken(&self, source: io::Error, patience: Option<Duration>) -> ControlError {
        let socket = self.socket.clone();
        match (source.kind(), patience) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(waited)) => {
                ControlError::Silent { socket, waited }
            }
            _ => ControlError::Broken { socket, source },
        }
    }
}

/// All sockets that may be ours to use.
fn sockets(owner: Option<u32>) -> Vec<PathBuf> {
    let mut users = vec![user(), 0];
    users.extend(owner);
    users.sort_unstable();
    users.dedup();
    let mut sockets: Vec<PathBuf> = users
        .into_iter()
        .filter_map(|user| fs::read_dir(runtime_directory(user)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    sockets.sort();
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_says_nothing_is_told_from_one_that_is_gone() {
        let (stream, daemon) = UnixStream::pair().unwrap();
        let mut client = Client {
            socket: PathBuf::from("/run/parsfs/x.sock"),
            stream: BufReader::new(stream),
        };
        let error = client.receive(Some(Duration::from_secs(1))).unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("no answer in 1 s"), "{told}");
        assert!(told.contains("x.sock: a disk may hang"), "{told}");
        drop(daemon);
        let error = client.receive(Some(Duration::from_secs(1))).unwrap_err();
        assert!(matches!(error, ControlError::Broken { .. }), "{error}");
    }
}
