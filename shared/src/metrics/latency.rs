//! Response times and delays by route, recorded by the reactors and read by the exporter.
//!
//! Routes are words of clients, so not every route gets a label. The invariants: a route has a row of its own only after
//! a worker answered it with success, no process ever has more than [`ROUTES_MAX`] such rows, and everything else
//! shares the row `other`. Once a reactor has met its routes, recording neither locks nor allocates.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hashbrown::HashMap;

use super::distribution::{Distribution, Snapshot};
use super::labels::{CodeLabel, DelayType, ResponseType};

/// How many routes have rows of their own.
pub const ROUTES_MAX: usize = 100;

/// The label of all others.
const OTHER: &str = "other";
/// The row of all others.
const OTHER_ROW: usize = 0;

/// Series of one route: response times by type and code, then delays by type.
const RESPONSES: usize = ResponseType::COUNT * CodeLabel::COUNT;
const SERIES: usize = RESPONSES + DelayType::COUNT;

/// The routes with rows of their own, for all reactors of a process.
#[derive(Debug)]
pub(super) struct RouteDirectory {
    /// The names of the rows; the first is `other`.
    routes: Mutex<Vec<Arc<str>>>,
    /// Set when the last row is taken. Reactors then copy the directory once and never look again.
    is_full: AtomicBool,
}

impl RouteDirectory {
    pub(super) fn new() -> Self {
        Self { routes: Mutex::new(vec![OTHER.into()]), is_full: AtomicBool::new(false) }
    }

    fn routes(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        // A list of names is whole after every step, so a thread that panicked left nothing half done.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, route: &str) -> usize {
        let mut routes = self.routes();
        if let Some(row) = routes.iter().position(|known| &**known == route) {
            return row;
        }
        if routes.len() > ROUTES_MAX {
            return OTHER_ROW;
        }
        routes.push(route.into());
        if routes.len() > ROUTES_MAX {
            self.is_full.store(true, Ordering::Release);
        }
        routes.len() - 1
    }

    /// The names of all rows.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.routes().clone()
    }
}

/// The distributions of one reactor, made when they are first needed.
#[derive(Debug)]
pub(super) struct LatencyCells {
    series: Box<[OnceLock<Box<Distribution>>]>,
}

impl LatencyCells {
    pub(super) fn new() -> Self {
        Self {
            series: (0..=ROUTES_MAX).flat_map(|_| (0..SERIES).map(|_| OnceLock::new())).collect(),
        }
    }

    fn cell(&self, row: usize, series: usize) -> &Distribution {
        self.series[row * SERIES + series].get_or_init(|| Box::new(Distribution::new()))
    }

    /// Adds every distribution in use to the sums, which are ordered like the cells.
    pub(super) fn add_to(&self, sums: &mut [Option<Snapshot>]) {
        for (sum, cell) in sums.iter_mut().zip(&self.series) {
            if let Some(distribution) = cell.get() {
                distribution.add_to(sum.get_or_insert_with(Snapshot::empty));
            }
        }
    }

    /// How many sums [`LatencyCells::add_to`] needs.
    pub(super) const COUNT: usize = (ROUTES_MAX + 1) * SERIES;
}

/// What a place in the sums stands for.
pub(super) enum Series {
    Response(ResponseType, CodeLabel),
    Delay(DelayType),
}

/// The row of a place in the sums, and what it stands for.
pub(super) fn series_at(place: usize) -> (usize, Series) {
    let (row, series) = (place / SERIES, place % SERIES);
    let series = if series < RESPONSES {
        let (kind, code) = (series / CodeLabel::COUNT, series % CodeLabel::COUNT);
        Series::Response(ResponseType::ALL[kind], CodeLabel::ALL[code])
    } else {
        Series::Delay(DelayType::ALL[series - RESPONSES])
    };
    (row, series)
}

/// The writing end of one reactor's latencies. It can move to the reactor's thread, but neither be cloned nor
/// shared.
#[derive(Debug)]
pub struct LatencyTable {
    cells: Arc<LatencyCells>,
    directory: Arc<RouteDirectory>,
    rows: HashMap<Arc<str>, usize>,
    /// The directory is full and `rows` is a copy of it.
    is_complete: bool,
    only_one_thread: PhantomData<Cell<()>>,
}

impl LatencyTable {
    pub(super) fn new(cells: Arc<LatencyCells>, directory: Arc<RouteDirectory>) -> Self {
        let rows = HashMap::with_capacity(ROUTES_MAX + 1);
        Self { cells, directory, rows, is_complete: false, only_one_thread: PhantomData }
    }

    /// Records how long an answer took, in nanoseconds. `code` is that of the error, or empty for success; the first
    /// success gives the route its own row while there is one.
    pub fn response(&mut self, route: &str, kind: ResponseType, code: CodeLabel, ns: u64) {
        let row = self.row(route, code == CodeLabel::Ok);
        let series = kind.index() * CodeLabel::COUNT + code.index();
        self.cells.cell(row, series).record_alone(ns);
    }

    /// Records how long a message waited, in nanoseconds.
    pub fn delay(&mut self, route: &str, kind: DelayType, ns: u64) {
        let row = self.row(route, false);
        self.cells.cell(row, RESPONSES + kind.index()).record_alone(ns);
    }

    fn row(&mut self, route: &str, was_answered: bool) -> usize {
        if let Some(row) = self.rows.get(route) {
            return *row;
        }
        if self.is_complete {
            return OTHER_ROW;
        }
        if self.directory.is_full.load(Ordering::Acquire) {
            let names = self.directory.names();
            self.rows = names.into_iter().enumerate().map(|(row, name)| (name, row)).collect();
            self.is_complete = true;
            return self.rows.get(route).copied().unwrap_or(OTHER_ROW);
        }
        if !was_answered {
            return OTHER_ROW;
        }
        let row = self.directory.insert(route);
        if row != OTHER_ROW {
            self.rows.insert(route.into(), row);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(directory: &Arc<RouteDirectory>) -> LatencyTable {
        LatencyTable::new(Arc::new(LatencyCells::new()), Arc::clone(directory))
    }

    #[test]
    fn a_route_gets_its_row_by_a_successful_answer_only() {
        let directory = Arc::new(RouteDirectory::new());
        let mut table = table(&directory);
        table.response("made.up", ResponseType::Handler, CodeLabel::NotFound, 5);
        table.delay("made.up", DelayType::Remote, 5);
        assert_eq!(directory.names().len(), 1);
        table.response("room.join", ResponseType::Handler, CodeLabel::Ok, 5);
        table.response("room.join", ResponseType::Handler, CodeLabel::Busy, 5);
        assert_eq!(directory.names(), ["other".into(), Arc::<str>::from("room.join")]);
    }

    #[test]
    fn no_process_has_more_rows_than_the_limit_however_many_reactors_it_has() {
        let directory = Arc::new(RouteDirectory::new());
        let (mut first, mut second) = (table(&directory), table(&directory));
        for number in 0..2_000 {
            let route = format!("made.up{number}");
            let table = if number % 2 == 0 { &mut first } else { &mut second };
            table.response(&route, ResponseType::Rpc, CodeLabel::Ok, 5);
        }
        assert_eq!(directory.names().len(), ROUTES_MAX + 1);
        assert_eq!(second.row("made.up0", false), 1, "known from the other reactor");
        assert_eq!(second.row("made.up1999", true), OTHER_ROW);
        assert_eq!(first.row("other", true), OTHER_ROW);
        let mut sums = vec![None; LatencyCells::COUNT];
        first.cells.add_to(&mut sums);
        second.cells.add_to(&mut sums);
        let count: u64 = sums.iter().flatten().map(Snapshot::count).sum();
        assert_eq!(count, 2_000, "nothing is lost");
    }

    #[test]
    fn places_and_series_match() {
        let cells = LatencyCells::new();
        let directory = Arc::new(RouteDirectory::new());
        let mut table = LatencyTable::new(Arc::new(cells), directory);
        table.response("a", ResponseType::Rpc, CodeLabel::Other, 5);
        table.response("a", ResponseType::Rpc, CodeLabel::Ok, 5);
        table.delay("a", DelayType::Remote, 5);
        let mut sums = vec![None; LatencyCells::COUNT];
        table.cells.add_to(&mut sums);
        let used: Vec<String> = (0..sums.len())
            .filter(|place| sums[*place].is_some())
            .map(|place| match series_at(place) {
                (row, Series::Response(kind, code)) => {
                    format!("{row} {} {}", kind.name(), code.name())
                }
                (row, Series::Delay(kind)) => format!("{row} {}", kind.name()),
            })
            .collect();
        assert_eq!(used, ["0 rpc other", "1 rpc ", "1 remote"]);
    }
}
