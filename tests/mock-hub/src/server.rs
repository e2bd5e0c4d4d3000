//! The two servers: a thread for each connection, faults around what the API answers, and the log.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::State;
use crate::api;
use crate::content::Memory;
use crate::faults::{self, Host, Kind};
use crate::http::{Connection, Delivery, Request, Response};
use crate::stats::Logged;

/// Both servers' sockets, before they serve.
pub(crate) struct Listeners {
    hub: TcpListener,
    cdn: TcpListener,
}

/// The running servers.
pub(crate) struct Servers {
    addresses: [SocketAddr; 2],
    open: Arc<Open>,
    threads: Vec<JoinHandle<()>>,
}

/// Connections that are to be closed when the servers stop.
#[derive(Default)]
struct Open {
    next: AtomicU64,
    streams: Mutex<HashMap<u64, TcpStream>>,
}

impl Listeners {
    pub(crate) fn bind(port: u16) -> io::Result<Listeners> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        Ok(Listeners { hub: bind(port)?, cdn: bind(0)? })
    }

    pub(crate) fn endpoint(&self) -> io::Result<String> {
        Ok(format!("http://127.0.0.1:{}", self.hub.local_addr()?.port()))
    }

    /// By name: for a client that is another host.
    pub(crate) fn cdn(&self) -> io::Result<String> {
        Ok(format!("http://localhost:{}", self.cdn.local_addr()?.port()))
    }

    pub(crate) fn serve(self, state: &Arc<State>) -> Servers {
        let open = Arc::new(Open::default());
        let address = |listener: &TcpListener| listener.local_addr().expect("a bound listener");
        let addresses = [address(&self.hub), address(&self.cdn)];
        let mut threads: Vec<_> = [(self.hub, Host::Hub), (self.cdn, Host::Cdn)]
            .into_iter()
            .map(|(listener, host)| {
                let (state, open) = (state.clone(), open.clone());
                thread::spawn(move || accept(&listener, host, &state, &open))
            })
            .collect();
        if state.store.discards() {
            let state = state.clone();
            threads.push(thread::spawn(move || {
                while !state.stopped.load(Ordering::Relaxed) {
                    state.store.tidy();
                    thread::sleep(Duration::from_millis(500));
                }
            }));
        }
        Servers { addresses, open, threads }
    }
}

impl Servers {
    pub(crate) fn stop(&mut self, state: &State) {
        state.stopped.store(true, Ordering::Relaxed);
        for address in self.addresses {
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for stream in self.open.streams.lock().expect("the connections' lock").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, host: Host, state: &Arc<State>, open: &Arc<Open>) {
    for stream in listener.incoming() {
        if state.stopped.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let id = open.next.fetch_add(1, Ordering::Relaxed);
        if let Ok(copy) = stream.try_clone() {
            open.streams.lock().expect("the connections' lock").insert(id, copy);
        }
        let (state, open) = (state.clone(), open.clone());
        thread::spawn(move || {
            // A client that goes away is none of the mock's errors.
            let polite = converse(Connection::new(stream), host, &state).unwrap_or(true);
            let stream = open.streams.lock().expect("the connections' lock").remove(&id);
            if let Some(stream) = stream.filter(|_| polite) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }
}

/// Answers what comes on a connection: whether it is to be ended rather than reset.
fn converse(mut connection: Connection, host: Host, state: &State) -> io::Result<bool> {
    while let Some(request) = connection.request()? {
        if host == Host::Hub && request.path.starts_with("/_mock/") {
            let response = api::control::answer(state, &request);
            if !connection.answer(&request, &response, Delivery::Whole, &mut |_| ())? {
                break;
            }
            continue;
        }
        let mut logged = Logged {
            host,
            method: request.method.clone(),
            path: request.path.clone(),
            range: request.header("range").map(str::to_owned),
            status: 0,
            bytes: 0,
        };
        let authorized = request.header("authorization").is_some();
        let Some((response, delivery)) = respond(state, &request, host) else {
            state.stats().add(logged, authorized);
            // With nothing to wait for, closing is a reset.
            rustix::net::sockopt::set_socket_linger(&connection.stream, Some(Duration::ZERO))?;
            return Ok(false);
        };
        logged.status = response.status;
        // Logged before the last byte is out: who has an answer finds it in the log.
        let mut unlogged = Some(logged);
        let mut log = |bytes| {
            if let Some(logged) = unlogged.take() {
                state.stats().add(Logged { bytes, ..logged }, authorized);
            }
        };
        let answered = connection.answer(&request, &response, delivery, &mut log);
        log(connection.sent);
        if !answered? {
            break;
        }
    }
    Ok(true)
}

/// The answer and how it goes out, or none if the connection is to be reset.
fn respond(state: &State, request: &Request, host: Host) -> Option<(Response, Delivery)> {
    let early = faults::early(&mut state.faults(), request, host);
    match early {
        Some(Kind::Reset) => return None,
        Some(Kind::TooManyRequests { retry_after }) => {
            let response = api::error(429, "We had to rate limit you. Try again later.");
            let response = match retry_after {
                Some(seconds) => response.with("Retry-After", seconds.to_string()),
                None => response,
            };
            return Some((response, Delivery::Whole));
        }
        Some(Kind::ServerError) => {
            let response = Response::text(503, "text/plain", "Service Unavailable");
            return Some((response, Delivery::Whole));
        }
        Some(Kind::RedirectTo(url)) => {
            return Some((Response::new(302).with("Location", url), Delivery::Whole));
        }
        Some(Kind::ChangeRevision { repo, path, bytes }) => {
            let _ = state.replace(&repo, &path, Arc::new(Memory::new(bytes)));
        }
        _ => {}
    }
    let mut response = api::answer(state, request, host);
    let late = faults::late(&mut state.faults(), request, host, &response);
    let delivery = match late {
        Some(Kind::IgnoreRange) => {
            let mut request = request.clone();
            request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("range"));
            response = api::answer(state, &request, host);
            Delivery::Whole
        }
        Some(Kind::LoseAnswer) => return None,
        Some(kind) => faults::spoil(&kind, &mut response),
        None => Delivery::Whole,
    };
    Some((response, delivery))
}
