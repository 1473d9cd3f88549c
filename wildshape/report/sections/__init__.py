"""The report's sections: each turns the analysis into blocks, or says which command it waits for."""
