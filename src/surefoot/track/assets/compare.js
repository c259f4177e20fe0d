doc = JSON.parse($("data").textContent);
if ($("all")) $("all").onchange = e => $("differs").classList.toggle("every", e.target.checked);
dark.addEventListener("change", drawCharts);
drawCharts();
