//! Placement: which device holds which tensors and whose layers' cache, and the engine's options that make it so.
//!
//! Layers lie on the devices in their order, each device filled to the same share. What does not fit them goes to the host's memory,
//! beginning with the first layers: of a mixture of experts the routed experts alone (a token uses few of them, so the host reads
//! little), of any other model whole layers. llama.cpp always keeps the token embeddings in the host's memory when a card computes
//! (`llama_model::load_tensors`: "there is very little benefit to offloading the input layer").

use formats::{OutputTensor, output::Class};

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a device, counted from 0.
    Device(usize),
    /// In the host's memory beside cards.
    Host,
    /// A part of each tensor on every device, which compute together (vLLM's tensor parallelism).
    Everywhere,
}

/// What is placed together.
enum Part {
    /// What is read before the first layer.
    Input,
    /// A layer without its routed experts.
    Layer(usize),
    /// A layer's routed experts.
    Experts(usize),
    /// What is read after the last layer.
    Output,
}

impl Part {
    /// What a tensor belongs to.
    fn of(output: &OutputTensor) -> Part {
        match (output.layer, output.class) {
            (None, Class::Embedding) => Part::Input,
            (None, _) => Part::Output,
            (Some(layer), class) if class.is_routed_expert() => Part::Experts(layer as usize),
            (Some(layer), _) => Part::Layer(layer as usize),
        }
    }
}

/// Bytes to place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// What is read before the first layer.
    pub input: u64,
    /// Of each layer: what every token reads of its weights, and its cache.
    pub layers: Vec<u64>,
    /// Of each layer: its routed experts.
    pub experts: Vec<u64>,
    /// What is read after the last layer.
    pub output: u64,
    /// Of the input, what is the output head as well: a card takes a copy of it.
    pub tied: u64,
}

/// The room there is for weights and cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// On each device.
    pub devices: Vec<u64>,
    /// Beside cards.
    pub host: Option<u64>,
    /// Whether the devices are cards, which leave the input to the host.
    pub cards: bool,
}

/// Where everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What is read before the first layer.
    pub input: Place,
    /// Each layer's weights (but for routed experts), and its cache.
    pub layers: Vec<Place>,
    /// Each layer's routed experts.
    pub experts: Vec<Place>,
    /// What is read after the last layer.
    pub output: Place,
}

impl Load {
    /// That of a model's tensors, whose bytes are given in their order, with a cache for each layer.
    pub fn new(outputs: &[OutputTensor], bytes: &[u64], cache: &[u64]) -> Load {
        let layers =
            outputs.iter().filter_map(|output| output.layer).max().map_or(0, |last| last as usize + 1);
        let layers = layers.max(cache.len());
        let mut load = Load { layers: vec![0; layers], experts: vec![0; layers], ..Load::default() };
        load.layers[..cache.len()].copy_from_slice(cache);
        for (output, bytes) in outputs.iter().zip(bytes) {
            *load.part(Part::of(output)) += bytes;
        }
        if !outputs.iter().any(|output| output.class == Class::Output) {
            load.tied = load.input;
        }
        load
    }

    fn part(&mut self, part: Part) -> &mut u64 {
        match part {
            Part::Input => &mut self.input,
            Part::Layer(layer) => &mut self.layers[layer],
            Part::Experts(layer) => &mut self.experts[layer],
            Part::Output => &mut self.output,
        }
    }

    fn all(&self) -> u64 {
        let sum = |all: &[u64]| all.iter().sum::<u64>();
        self.input + sum(&self.layers) + sum(&self.experts) + self.output
    }
}

impl Placement {
    /// Where a tensor lies.
    pub fn of(&self, output: &OutputTensor) -> Place {
        match Part::of(output) {
            Part::Input => self.input,
            Part::Layer(layer) => self.layers[layer],
            Part::Experts(layer) => self.experts[layer],
            Part::Output => self.output,
        }
    }

    /// With all of a model of so many layers at one place.
    pub fn all_at(place: Place, outputs: &[OutputTensor], layers: usize) -> Placement {
        let last = outputs.iter().filter_map(|output| output.layer).max();
        let layers = layers.max(last.map_or(0, |last| last as usize + 1));
        Placement { input: place, layers: vec![place; layers], experts: vec![place; layers], output: place }
    }

    /// Places a load with as little of it in the host's memory as there must be.
    ///
    /// # Errors
    /// How many bytes too large it is, about: at least 1.
    pub fn new(load: &Load, room: &Room) -> Result<Placement, u64> {
        let count = load.layers.len();
        let mixture = load.experts.iter().any(|&bytes| bytes > 0);
        // Experts of so many layers, then so many whole layers are the host's.
        let steps = match room.host {
            None => vec![(0, 0)],
            Some(_) if mixture => (0..=count)
                .map(|experts| (experts, 0))
                .chain((1..=count).map(|whole| (count, whole)))
                .collect(),
            Some(_) => (0..=count).map(|whole| (whole, whole)).collect(),
        };
        for (experts, whole) in steps {
            if let Some(placement) = Placement::with(load, room, experts, whole) {
                return Ok(placement);
            }
        }
        let room = room.devices.iter().chain(&room.host).fold(0u64, |sum, &bytes| sum.saturating_add(bytes));
        Err(load.all().saturating_sub(room).max(1))
    }

    /// With the experts of the first `experts` layers and all of the first `whole` on the host, if that fits.
    fn with(load: &Load, room: &Room, experts: usize, whole: usize) -> Option<Placement> {
        let beside = room.cards;
        let mut host = load.layers[..whole].iter().chain(&load.experts[..experts]).sum::<u64>();
        if beside {
            host += load.input;
        }
        if room.host.is_some_and(|room| host > room) {
            return None;
        }
        let mut bytes: Vec<u64> = load.layers[whole..].to_vec();
        for (layer, expert) in bytes.iter_mut().zip(&load.experts[whole..]).skip(experts - whole) {
            *layer += expert;
        }
        let ends = if beside { (0, load.output + load.tied) } else { (load.input, load.output) };
        let devices = split(&bytes, ends, &room.devices)?;
        let layers: Vec<Place> = std::iter::repeat_n(Place::Host, whole)
            .chain(devices.iter().map(|&device| Place::Device(device)))
            .collect();
        let experts = layers
            .iter()
            .enumerate()
            .map(|(layer, &place)| if layer < experts { Place::Host } else { place });
        Some(Placement {
            input: if beside { Place::Host } else { Place::Device(0) },
            experts: experts.collect(),
            output: if whole == load.layers.len() && room.host.is_some() {
                Place::Host
            } else {
                Place::Device(room.devices.len() - 1)
            },
            layers,
        })
    }

    /// The layers after which another device begins, for their experts or for the rest.
    pub fn boundaries(&self) -> Vec<u32> {
        let changes = |places: &[Place], layer: usize| places[layer] != places[layer + 1];
        (0..self.layers.len().saturating_sub(1))
            .filter(|&layer| changes(&self.layers, layer) || changes(&self.experts, layer))
            .map(|layer| layer as u32)
            .collect()
    }

    /// llama.cpp's options for it.
    pub fn flags(&self, devices: usize) -> Vec<String> {
        let on_host = |places: &[Place]| places.iter().filter(|&&place| place == Place::Host).count();
        let (layers, experts) = (on_host(&self.layers), on_host(&self.experts));
        // One more than the layers: what is read after the last counts as one.
        let offloaded = if layers == 0 {
            99
        } else {
            self.layers.len() - layers + usize::from(self.output != Place::Host)
        };
        let mut flags = vec!["-ngl".to_owned(), offloaded.to_string()];
        if experts > layers {
            flags.extend(["--n-cpu-moe".to_owned(), experts.to_string()]);
        }
        if devices > 1 {
            let on = |device| {
                self.layers.iter().filter(|&&place| place == Place::Device(device)).count().to_string()
            };
            flags.extend(["-ts".to_owned(), (0..devices).map(on).collect::<Vec<_>>().join(",")]);
        }
        flags
    }
}

/// The device of each layer, so that every device is filled to the same share as nearly as whole layers allow; `None` if
/// some device would overflow. The input goes with the first layer, the output to the last device.
fn split(layers: &[u64], (input, output): (u64, u64), devices: &[u64]) -> Option<Vec<usize>> {
    let assign = |share: f64| {
        let mut placed = Vec::with_capacity(layers.len());
        let (mut device, mut used) = (0, input);
        for &bytes in layers {
            let fits = |device: usize, used: u64| {
                let end = if device + 1 == devices.len() { output } else { 0 };
                (used + bytes + end) as f64 <= devices[device] as f64 * share
            };
            while device + 1 < devices.len() && !fits(device, used) {
                (device, used) = (device + 1, 0);
            }
            if !fits(device, used) {
                return None;
            }
            used += bytes;
            placed.push(device);
        }
        let last = devices.len() - 1;
        let end = output + if device == last { used } else { 0 };
        (input <= devices[0] && end as f64 <= devices[last] as f64 * share).then_some(placed)
    };
    if devices.is_empty() {
        return None;
    }
    // In steps of half a percent.
    (1..=200).find_map(|step| assign(f64::from(step) / 200.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten layers of 10 bytes, with experts of 100 where asked for.
    fn load(experts: bool) -> Load {
        Load {
            input: 5,
            layers: vec![10; 10],
            experts: vec![if experts { 100 } else { 0 }; 10],
            output: 5,
            tied: 0,
        }
    }

    fn room(devices: &[u64], host: Option<u64>) -> Room {
        Room { devices: devices.to_vec(), host, cards: true }
    }

    #[test]
    fn what_fits_one_device_lies_there() {
        let unified = Room { devices: vec![1110], host: None, cards: false };
        let placement = Placement::new(&load(true), &unified).expect("it just fits");
        assert!(placement.experts.iter().chain(&placement.layers).all(|&place| place == Place::Device(0)));
        assert_eq!(placement.input, Place::Device(0));
        assert_eq!(placement.flags(1), ["-ngl", "99"]);
        assert!(placement.boundaries().is_empty());
        assert_eq!(Placement::new(&load(true), &Room { devices: vec![1000], ..unified }), Err(110));
    }

    #[test]
    fn a_card_leaves_the_input_to_the_host() {
        let placement = Placement::new(&load(false), &room(&[105], None)).expect("layers and output fit");
        assert_eq!(placement.input, Place::Host);
    }

    #[test]
    fn the_first_layers_experts_go_to_the_host_first() {
        let placement = Placement::new(&load(true), &room(&[420], Some(1000))).expect("both together");
        // 105 bytes of layers and output leave room for the experts of three layers.
        let experts = placement.experts.iter().map(|&place| place == Place::Host);
        assert_eq!(experts.collect::<Vec<_>>(), [vec![true; 7], vec![false; 3]].concat());
        assert!(placement.layers.iter().all(|&place| place == Place::Device(0)));
        assert_eq!(placement.flags(1), ["-ngl", "99", "--n-cpu-moe", "7"]);
        assert_eq!(placement.boundaries(), [6]);
    }

    #[test]
    fn layers_go_to_the_host_where_there_are_no_experts_left() {
        let placement = Placement::new(&load(false), &room(&[62], Some(1000))).expect("both together");
        assert_eq!(placement.layers[4..=5], [Place::Host, Place::Device(0)]);
        assert_eq!(placement.flags(1), ["-ngl", "6"]);
        let placement = Placement::new(&load(true), &room(&[62], Some(2000))).expect("both together");
        assert_eq!(placement.flags(1)[..4], ["-ngl", "6", "--n-cpu-moe", "10"]);
    }

    #[test]
    fn several_devices_are_filled_evenly() {
        let placement = Placement::new(&load(false), &room(&[80, 160], None)).expect("plenty");
        let on_first = placement.layers.iter().filter(|&&place| place == Place::Device(0)).count();
        assert_eq!(on_first, 3, "{:?}", placement.layers);
        assert_eq!(placement.output, Place::Device(1));
        assert_eq!(placement.flags(2), ["-ngl", "99", "-ts", "3,7"]);
        assert_eq!(placement.boundaries(), [2]);
        // Whole layers only: 15 bytes hold one of 10.
        assert!(Placement::new(&load(false), &room(&[15, 15], None)).is_err());
    }
}
