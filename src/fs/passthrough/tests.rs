use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::*;

/// Unused registrations that are kept, in these tests.
const IDLE: usize = 2;
/// Inodes; two have one content each.
const NODES: u64 = 8;

/// The kernel's side of a mount, with its rules.
#[derive(Default)]
struct KernelModel(Mutex<FakeConnection>);

#[derive(Default)]
struct FakeConnection {
    last: u32,
    objects: u64,
    registered: BTreeMap<u32, u64>,
    /// By what an inode is open (none is the page cache), and how often.
    inodes: HashMap<NodeId, (Option<u64>, u32)>,
}

impl BackingDevice for Arc<KernelModel> {
    fn register(&self, _: &OwnedFd) -> io::Result<u32> {
        death::step();
        let mut connection = self.0.lock();
        connection.last += 1;
        connection.objects += 1;
        let (id, object) = (connection.last, connection.objects);
        connection.registered.insert(id, object);
        drop(connection);
        death::step();
        Ok(id)
    }

    fn end(&self, id: u32) -> io::Result<()> {
        death::step();
        let ended = self.0.lock().registered.remove(&id);
        death::step();
        ended.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn probe(&self) -> io::Result<u32> {
        let id = self.register(&some_file())?;
        self.end(id)?;
        Ok(id)
    }
}

impl KernelModel {
    /// An OPEN was answered.
    fn open(&self, node: NodeId, opened: OpenReply) {
        let mut connection = self.0.lock();
        let object = opened.backing.map(|id| {
            let object = connection.registered.get(&id);
            *object.unwrap_or_else(|| panic!("EIO: nothing has the number {id}"))
        });
        let (by, count) = connection.inodes.entry(node).or_insert((object, 0));
        assert_eq!(*by, object, "EIO: {node:?} is open by something else");
        *count += 1;
    }

    /// A file is closed; RELEASE comes after that.
    fn close(&self, node: NodeId) {
        let mut connection = self.0.lock();
        let (_, count) = connection.inodes.get_mut(&node).unwrap();
        *count -= 1;
        if *count == 0 {
            connection.inodes.remove(&node);
        }
    }

    fn ids(&self) -> Vec<u32> {
        self.0.lock().registered.keys().copied().collect()
    }
}

fn some_file() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn node(number: u64) -> NodeId {
    NodeId::entry(7, number as u32)
}

fn content(number: u64) -> Digest {
    Digest::of(&[(number / 2) as u8])
}

#[derive(Clone, Copy, Debug)]
enum ModelAction {
    /// A program opens this inode.
    Open(u64),
    /// A program closes the n-th of the files that are open.
    Close(usize),
    /// Both at once: the RELEASE is read first and answered last.
    CloseAndOpen(usize, u64),
    /// The store comes to have a file with what is in this inode.
    Fetch(u64),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum FakeRequest {
    Open(u64, u64),
    Release(FileHandle),
}

/// Programs, the kernel, and what outlives the server.
struct PassthroughModel {
    kernel: Arc<KernelModel>,
    inode_table: Arc<InodeTable>,
    unique: u64,
    stored: HashSet<Digest>,
    open: Vec<(u64, FileHandle)>,
    /// Requests that are not answered.
    pending: Vec<FakeRequest>,
}

impl PassthroughModel {
    fn new() -> (RefCell<Self>, Passthrough) {
        let kernel = Arc::new(KernelModel::default());
        let inode_table = Arc::new(InodeTable::create_with_open_files().unwrap());
        let server =
            Passthrough::new_with(Box::new(kernel.clone()), Some(inode_table.clone()), IDLE);
        server.enable().unwrap();
        let world = Self {
            kernel,
            inode_table,
            unique: 0,
            stored: [content(0), content(2)].into(),
            open: Vec::new(),
            pending: Vec::new(),
        };
        (RefCell::new(world), server)
    }

    fn next_process(world: &RefCell<Self>) -> Passthrough {
        let (kernel, inode_table) = {
            let world = world.borrow();
            (world.kernel.clone(), world.inode_table.clone())
        };
        let memory = inode_table.memory().try_clone_to_owned().unwrap();
        let inode_table = Arc::new(InodeTable::open(memory).unwrap());
        Passthrough::take_over_with(Box::new(kernel), inode_table, IDLE, |_| true).unwrap()
    }

    fn act(world: &RefCell<Self>, server: &Passthrough, act: ModelAction) {
        match act {
            ModelAction::Fetch(number) => {
                world.borrow_mut().stored.insert(content(number));
            }
            ModelAction::Open(number) => {
                let open = world.borrow_mut().ask_open(number);
                Self::answer(world, server, open, false);
            }
            ModelAction::Close(at) => {
                let release = world.borrow_mut().ask_release(at);
                if let Some(release) = release {
                    Self::answer(world, server, release, false);
                }
            }
            ModelAction::CloseAndOpen(at, number) => {
                let (release, open) = {
                    let mut world = world.borrow_mut();
                    (world.ask_release(at), world.ask_open(number))
                };
                if let Some(FakeRequest::Release(handle)) = release {
                    server.close(handle);
                }
                Self::answer(world, server, open, false);
                if let Some(release) = release {
                    world.borrow_mut().answered(release);
                }
            }
        }
    }

    fn ask_open(&mut self, number: u64) -> FakeRequest {
        self.unique += 2;
        let request = FakeRequest::Open(self.unique, number);
        self.pending.push(request);
        request
    }

    fn ask_release(&mut self, at: usize) -> Option<FakeRequest> {
        let at = at.checked_rem(self.open.len())?;
        let (number, handle) = self.open.remove(at);
        self.kernel.close(node(number));
        let request = FakeRequest::Release(handle);
        self.pending.push(request);
        Some(request)
    }

    fn answered(&mut self, request: FakeRequest) {
        self.pending.retain(|pending| *pending != request);
    }

    /// The server answers a request.
    fn answer(world: &RefCell<Self>, server: &Passthrough, request: FakeRequest, repeated: bool) {
        match request {
            FakeRequest::Open(unique, number) => {
                let digest = content(number);
                let has_file = world.borrow().stored.contains(&digest);
                let found = || Ok::<_, io::Error>(has_file.then(|| Arc::new(some_file())));
                let asked = OpenRequest { unique, repeated };
                let opened = server.open(asked, node(number), &digest, found).unwrap();
                death::step();
                let mut world = world.borrow_mut();
                world.kernel.open(node(number), opened);
                world.open.push((number, opened.handle));
                world.answered(request);
            }
            FakeRequest::Release(handle) => {
                server.close(handle);
                death::step();
                world.borrow_mut().answered(request);
            }
        }
        death::step();
    }

    /// The server answers what another one did not.
    fn answer_again(world: &RefCell<Self>, server: &Passthrough) {
        let pending = world.borrow().pending.clone();
        for request in pending {
            Self::answer(world, server, request, true);
        }
    }
}

/// Programs at random, the same ones for the same seed.
fn acts(seed: u64, count: usize) -> Vec<ModelAction> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    (0..count)
        .map(|_| match next(10) {
            0..4 => ModelAction::Open(next(NODES)),
            4..7 => ModelAction::Close(next(8) as usize),
            7..9 => ModelAction::CloseAndOpen(next(8) as usize, next(NODES)),
            _ => ModelAction::Fetch(next(NODES)),
        })
        .collect()
}

/// The server dies after `first` steps, the next one after `second`, and the one after that runs to
/// the end. If `withdrawn`, programs that wait for an OPEN meanwhile are killed. Returns whether
/// the first server died at all.
fn live(acts: &[ModelAction], first: u32, second: u32, withdrawn: bool) -> bool {
    let (world, server) = PassthroughModel::new();
    let done = RefCell::new(0);
    let proceed = |server: &Passthrough| {
        loop {
            let at = *done.borrow();
            let Some(act) = acts.get(at) else { break };
            *done.borrow_mut() += 1;
            PassthroughModel::act(&world, server, *act);
        }
    };
    let died = death::after(first, || proceed(&server)).is_none();
    drop(server);
    let mut lost = 0;
    let mut withdraw = || {
        let mut world = world.borrow_mut();
        if withdrawn {
            let before = world.pending.len();
            let is_open = |request: &FakeRequest| matches!(request, FakeRequest::Open(..));
            world.pending.retain(|request| !is_open(request));
            lost += before - world.pending.len();
        }
    };
    withdraw();
    let next = death::after(second, || {
        let server = PassthroughModel::next_process(&world);
        PassthroughModel::answer_again(&world, &server);
        proceed(&server);
        server
    });
    withdraw();
    // Dead or not.
    drop(next);
    let server = PassthroughModel::next_process(&world);
    PassthroughModel::answer_again(&world, &server);
    proceed(&server);
    let open = world.borrow().open.len();
    let count = server.count();
    assert!(
        count.files >= open && count.files <= open + lost,
        "{count:?}"
    );
    while !world.borrow().open.is_empty() {
        PassthroughModel::act(&world, &server, ModelAction::Close(0));
    }
    let count = server.count();
    assert!(count.files <= lost, "{count:?} after every close");
    assert!(
        count.registered <= IDLE + lost,
        "{count:?} after every close"
    );
    let kernel = world.borrow().kernel.clone();
    assert_eq!(
        kernel.ids(),
        server.table.lock().ids(),
        "what the kernel has"
    );
    died
}

/// Every possible death, in the first server and in the second.
#[test]
fn whenever_a_server_dies_the_next_one_knows_what_is_open() {
    let mut deaths = 0;
    for seed in 0..4 {
        let acts = acts(seed, 20);
        let mut first = 0;
        while live(&acts, first, u32::MAX, false) {
            // During the take-over, and a while after.
            for second in 0..24 {
                live(&acts, first, second, false);
            }
            for second in (0..24).step_by(5) {
                live(&acts, first, second, true);
            }
            first += 1;
        }
        deaths += first;
    }
    println!("{deaths} different deaths of the first server");
    assert!(deaths > 300, "{deaths}");
}

/// What a withdrawn OPEN holds is released once the kernel does not know the node.
#[test]
fn what_is_open_in_an_unknown_node_is_not_open() {
    let (world, server) = PassthroughModel::new();
    PassthroughModel::act(&world, &server, ModelAction::Open(0));
    PassthroughModel::act(&world, &server, ModelAction::Open(6));
    drop(server);
    let inode_table = world.borrow().inode_table.clone();
    let kernel = world.borrow().kernel.clone();
    let taken_over = |kernel: &Arc<KernelModel>, known: NodeId| {
        let device = Box::new(kernel.clone());
        Passthrough::take_over(device, inode_table.clone(), |node| node == known).unwrap()
    };
    let count = taken_over(&kernel, node(0)).count();
    assert_eq!((count.files, count.backed, count.registered), (1, 1, 1));
    let count = taken_over(&kernel, node(1)).count();
    assert_eq!((count.files, count.backed, count.registered), (0, 0, 1));
}

#[test]
fn a_blob_keeps_its_number_while_it_is_open_and_a_while_after() {
    let kernel = Arc::new(KernelModel::default());
    let passthrough = Passthrough::new(Box::new(kernel.clone()), None);
    let open = |number: u32| {
        let digest = Digest::of(&number.to_le_bytes());
        let request = OpenRequest {
            unique: 0,
            repeated: false,
        };
        let found = || Ok::<_, io::Error>(Some(Arc::new(some_file())));
        let opened = passthrough.open(request, node(number.into()), &digest, found);
        opened.unwrap()
    };
    let first = open(0);
    let number = first.backing;
    let mut handles = vec![first.handle];
    let again = |handles: &mut Vec<FileHandle>| {
        let opened = open(0);
        handles.push(opened.handle);
        opened.backing
    };
    assert_eq!(again(&mut handles), number);
    for other in 1..=2 * MOST_IDLE as u32 {
        passthrough.close(open(other).handle);
    }
    // Still open, whatever came and went.
    assert_eq!(again(&mut handles), number);
    assert_eq!(kernel.ids().len(), MOST_IDLE + 1);
    assert_eq!(passthrough.count().files, handles.len());
    for handle in handles.drain(..) {
        passthrough.close(handle);
        // A second time, as by a repeated RELEASE.
        passthrough.close(handle);
    }
    assert_eq!(passthrough.count().files, 0);
    assert_eq!(again(&mut handles), number);
    passthrough.close(handles[0]);
    for other in 5000..5000 + 2 * MOST_IDLE as u32 {
        passthrough.close(open(other).handle);
    }
    assert_ne!(again(&mut handles), number);
}

/// The blob came to the store while the inode was open: an open of another kind would fail.
#[test]
fn an_inode_that_is_open_through_the_page_cache_stays_so_until_it_is_closed() {
    let (world, server) = PassthroughModel::new();
    PassthroughModel::act(&world, &server, ModelAction::Open(6));
    PassthroughModel::act(&world, &server, ModelAction::Fetch(6));
    // Of equal content, and another inode.
    PassthroughModel::act(&world, &server, ModelAction::Open(7));
    PassthroughModel::act(&world, &server, ModelAction::Open(6));
    let count = server.count();
    assert_eq!((count.files, count.backed, count.registered), (3, 1, 1));
    drop(server);
    let server = PassthroughModel::next_process(&world);
    PassthroughModel::act(&world, &server, ModelAction::Open(6));
    assert_eq!(server.count().backed, 1);
    for _ in 0..4 {
        PassthroughModel::act(&world, &server, ModelAction::Close(0));
    }
    PassthroughModel::act(&world, &server, ModelAction::Open(6));
    assert_eq!(server.count().backed, 1);
}

/// As on a file system that cannot back another.
#[test]
fn a_file_that_cannot_be_registered_is_read_through_the_page_cache() {
    struct RefusingDevice;
    impl BackingDevice for RefusingDevice {
        fn register(&self, _: &OwnedFd) -> io::Result<u32> {
            Err(io::Error::from_raw_os_error(libc::ELOOP))
        }
        fn end(&self, _: u32) -> io::Result<()> {
            unreachable!("nothing was registered")
        }
        fn probe(&self) -> io::Result<u32> {
            Ok(1)
        }
    }
    let passthrough = Passthrough::new(Box::new(RefusingDevice), None);
    passthrough.enable().unwrap();
    let request = OpenRequest {
        unique: 2,
        repeated: false,
    };
    let found = || Ok::<_, io::Error>(Some(Arc::new(some_file())));
    let opened = passthrough
        .open(request, node(0), &content(0), found)
        .unwrap();
    assert_eq!(opened.backing, None);
    passthrough.close(opened.handle);
    assert_eq!(passthrough.count(), OpenCount::default());
}
