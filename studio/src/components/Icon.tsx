/** Icons by name, drawn as lines of the text's colour. */
const PATHS = {
  draw: "M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z",
  plane: "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M21 12l-3-3M21 12l-3 3M15.5 8.5h.01",
  paint: "M4 20c0-3 1-5 3.500-5S11 16.500 11 18s-1.500 2-3 2zM10 14.500L18.500 4c.8-.9 2.300.2 1.700 1.300L13 17",
  enlarge: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
  train: "M4 4v16h16M7 8c2 7 5 8 12 8.500",
  data: "M4 6c0-4 16-4 16 0s-16 4-16 0zM4 6v12c0 4 16 4 16 0V6M4 12c0 4 16 4 16 0",
  models: "M12 3l8.500 4.500L12 12 3.500 7.500zM3.500 12l8.500 4.500 8.500-4.500M3.500 16.500L12 21l8.500-4.500",
  jobs: "M9 6h11M9 12h11M9 18h11M4 6h.01M4 12h.01M4 18h.01",
  compare: "M4 4h6v16H4zM14 4h6v16h-6z",
  system: "M12 3a9 9 0 1 0 0 18 9 9 0 1 0 0-18zM12 3v18",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M5 19l2-2",
  dark: "M20 14.500A8.500 8.500 0 1 1 9.500 4a7 7 0 0 0 10.500 10.500z",
  again: "M20 12a8 8 0 1 1-2.500-5.800M20 3v5h-5",
  dice: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1zM9 9h.01M15 15h.01M15 9h.01M9 15h.01",
  close: "M6 6l12 12M18 6L6 18",
  sliders: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}
